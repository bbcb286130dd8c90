"""The one way to reach others, and what a package stands on: named here, implemented on TCP by `transport/pool.py` and
`server.py`, and on a virtual network by the simulator. Who uses these does not know which world it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from synapse_p2p.context import CallContext
from synapse_p2p.identity import Identity, NodeID
from synapse_p2p.runtime import Runtime
from synapse_p2p.trust import TrustConfig


class KnownPeer(Protocol):
    """Somebody with an id and addresses; a routing table's contact is one."""

    @property
    def id(self) -> NodeID:
        """Who."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where, as `host:port`, best first."""
        ...


@dataclass(frozen=True, slots=True)
class ProvedPeer:
    """A peer with whom a session is open.

    `addresses` holds the address that we dialed and that answered; it is empty where the peer dialed us, for where it
    listens is its word alone until somebody dials it. `seen` is our own address as the peer sees it, empty when it said
    none; `unix_ms` is its clock.
    """

    id: NodeID
    addresses: tuple[str, ...]
    seen: str = ""
    unix_ms: int = 0


class PeerCaller(Protocol):
    """Sessions with others. Every method raises PeerUnavailable, Timeout or HandshakeFailed when the peer is not to be
    had.
    """

    async def connect(self, peer: KnownPeer) -> ProvedPeer:
        """A session with this very id: the one that is open, or a new one to the first address that answers."""
        ...

    async def connect_address(self, address: str, expected_id: NodeID | None = None) -> ProvedPeer:
        """A session with whoever listens at `host:port`, or with nobody but `expected_id`."""
        ...

    async def check_dial(self, peer: KnownPeer) -> None:
        """Prove (id, address) by a second connection: handshake, ping, close. Sessions that are open stay."""
        ...

    async def call(self, peer: KnownPeer, endpoint: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The answer of a package's endpoint. Raises RemoteError too. `timeout_s` covers a dial, where one is
        needed.
        """
        ...

    def retire_sessions(self) -> None:
        """Start no new call over what is open now, for the peers may have given it up, and forget which addresses
        failed: the next call to each dials anew. Calls that run go on; what has none is closed in good order.
        """
        ...

    def is_connected(self, node_id: NodeID) -> bool:
        """Whether a call would need no dial."""
        ...

    @property
    def dialed_at(self) -> float | None:
        """When a member last dialed us, by the runtime's clock; None where none has.

        Who listens nowhere, as a command on this machine, is no member, unless we had a session with it already: so are
        check dials.
        """
        ...

    def proved_addresses(self, node_id: NodeID) -> tuple[str, ...]:
        """Where a dial of ours reached this id over a session that is open now; empty where none did."""
        ...


class Host(Protocol):
    """A place in a network where a node can live."""

    @property
    def identity(self) -> Identity:
        """Who it is."""
        ...

    @property
    def network_id(self) -> bytes:
        """16 bytes that name its network."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Its clock and chance."""
        ...

    @property
    def peers(self) -> PeerCaller:
        """How it reaches others."""
        ...

    @property
    def advertised_addresses(self) -> tuple[str, ...]:
        """Where others can dial it; empty for a client."""
        ...

    @property
    def trust(self) -> TrustConfig:
        """Which hosts limits by place do not count: all of them in a network with a key."""
        ...

    def mount(self, prefix: str, endpoints: Mapping[str, Callable[[Mapping[str, Any], CallContext], Any]]) -> None:
        """Serve these endpoints, named in full, to authenticated peers."""
        ...

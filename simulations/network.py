"""A network in virtual time: hosts, how long a message takes between two of them, and a digest of all that arrived.

Owns delivery and the life of hosts. How hosts talk is in `pool.py` and `connection.py`. Messages are the encoded bytes
of the real wire; what is left out is the encryption around them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeAlias

from simulations.connection import PING_ENDPOINT
from simulations.pool import VirtualPool
from simulations.virtual_loop import VirtualLoop
from synapse_p2p.config import ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import EndpointDirectory, MountedHandler
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity, NodeID, network_id_of
from synapse_p2p.protocol.wire import FrameKind
from synapse_p2p.runtime import Runtime

EPOCH_S = 1_767_225_600.0
"""What the wall clocks of all hosts show when the virtual clock shows 0: the start of 2026, UTC."""
LISTEN_PORT = 9000
SOURCE_PORT = 40_000  # where the connections that a host opens come from
MAX_HOSTS = 2**24 - 1  # addresses in 10/8, without its first


Receive: TypeAlias = Callable[[str, bytes], None]
"""What happens when a message has arrived; it is given the endpoint and the body."""


class Latency(Protocol):
    """How long messages take. A model that draws has a Random of its own."""

    def __call__(self, source: NodeID, target: NodeID) -> float:
        """Seconds one way, of the next message from `source` to `target`."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantLatency:
    """Everybody is equally far from everybody."""

    one_way_s: float = 0.04  # 80 ms there and back: the median between hosts of the Internet, roughly

    def __call__(self, source: NodeID, target: NodeID) -> float:
        return self.one_way_s


class Digest:
    """SHA-256 over everything that arrived and every fault, in order. Two runs alike have one digest."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.message_count = 0

    def add_message(self, at_us: int, source: NodeID, target: NodeID, endpoint: str, body: bytes) -> None:
        """`endpoint` is what is called, or for messages that belong to no call what they do."""
        name = endpoint.encode()
        lengths = len(name).to_bytes(2, "big") + len(body).to_bytes(4, "big")
        self._hash.update(b"".join((b"M", at_us.to_bytes(8, "big"), source, target, lengths, name, body)))
        self.message_count += 1

    def add_fault(self, at_us: int, node_id: NodeID, fault: str) -> None:
        """Something that the scenario did to a host."""
        name = fault.encode()
        self._hash.update(b"".join((b"F", at_us.to_bytes(8, "big"), node_id, len(name).to_bytes(2, "big"), name)))

    def hexdigest(self) -> str:
        """64 characters that stand for the run so far."""
        return self._hash.hexdigest()


class VirtualNetwork:
    """Hosts, by address. All chance comes from `rng`: the hosts' keys and their own random numbers."""

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        latency: Latency,
        digest: Digest,
        *,
        config: ServerConfig | None = None,
    ) -> None:
        self.loop = loop
        self.digest = digest
        self.config = config or ServerConfig()
        self.max_frame_bytes = {
            FrameKind.CONTROL: self.config.session.max_control_frame_bytes,
            FrameKind.TASK: self.config.session.max_task_frame_bytes,
        }
        self._rng = rng
        self._latency = latency
        self._hosts: dict[str, VirtualHost] = {}
        self._host_count = 0

    def host(self, *, network: str = "") -> VirtualHost:
        """A new host that others can dial."""
        ip = self._next_ip()
        host = self._make_host(ip, f"{ip}:{LISTEN_PORT}", network)
        self._hosts[host.address] = host
        return host

    def client(self, *, network: str = "") -> VirtualHost:
        """A new host that nobody can dial; who is dialed by it can call it back."""
        return self._make_host(self._next_ip(), "", network)

    def at(self, address: str) -> VirtualHost | None:
        """Who has this address; None for an address that leads nowhere."""
        return self._hosts.get(address)

    def send(
        self,
        source: VirtualHost,
        target: VirtualHost,
        endpoint: str,
        body: bytes,
        receive: Receive,
        *,
        not_before: float = 0.0,
    ) -> float:
        """Call `receive(endpoint, body)` when the message has arrived, unless the target is silent then.

        Returns the second at which that is. One connection hands it in again as `not_before`, so that its
        messages do not overtake each other. A silent host sends nothing.
        """
        loop = self.loop
        arrives_at = max(loop.time() + self._latency(source.id, target.id), not_before)
        if source.state is not HostState.SILENT:
            loop.call_at(arrives_at, self._deliver, source, target, endpoint, body, receive)
        return arrives_at

    def _deliver(
        self,
        source: VirtualHost,
        target: VirtualHost,
        endpoint: str,
        body: bytes,
        receive: Receive,
    ) -> None:
        if target.state is not HostState.SILENT:
            self.digest.add_message(self.loop.now_us, source.id, target.id, endpoint, body)
            receive(endpoint, body)

    def _next_ip(self) -> str:
        if self._host_count == MAX_HOSTS:
            raise ConfigError(f"a virtual network has room for {MAX_HOSTS} hosts")
        self._host_count += 1
        a, b, c = self._host_count.to_bytes(3, "big")
        return f"10.{a}.{b}.{c}"

    def _make_host(self, ip: str, address: str, network: str) -> VirtualHost:
        rng = random.Random(self._rng.getrandbits(64))
        loop = self.loop
        runtime = Runtime(
            now=loop.time,
            unix_now=lambda: EPOCH_S + loop.time(),
            rng=rng,
            token_bytes=rng.randbytes,
        )
        identity = Identity.from_seed(self._rng.randbytes(SEED_SIZE_BYTES))
        return VirtualHost(self, identity, runtime, f"{ip}:{SOURCE_PORT}", address, network)


class HostState(Enum):
    """What becomes of a message that arrives. `STOPPED` refuses it; `SILENT` lets it vanish."""

    UP = "up"
    STOPPED = "stopped"
    SILENT = "silent"


class VirtualHost:
    """A place in a virtual network where a node can live: a `synapse_p2p.peers.Host`.

    What the scenario does to it (`stop`, `crash`, `fall_silent`, `restart`) happens at once. It does not end the
    tasks of the node that lived there: their calls fail, and who started them ends them.
    """

    def __init__(
        self,
        network: VirtualNetwork,
        identity: Identity,
        runtime: Runtime,
        source_address: str,
        address: str,
        network_name: str,
    ) -> None:
        self.network = network
        self.identity = identity
        self.id: NodeID = identity.node_id
        self.runtime = runtime
        self.source_address = source_address
        self.address = address
        self.advertised_addresses = (address,) if address else ()
        self.network_name = network_name
        self.network_id = network_id_of(network_name)
        # What others' handlers may know of it: over a session that it opened, and over one that they did.
        listen_address = address or None
        self.as_caller = CallContext(self.id, source_address, listen_address, network_name)
        self.as_listener = CallContext(self.id, address, listen_address, network_name)
        self.state = HostState.UP
        self.incarnation = 0  # grows with every end of its process; what an earlier one knew is lost
        self._endpoints = self._new_endpoints()
        self.peers = VirtualPool(self)

    def __repr__(self) -> str:
        return f"VirtualHost({self.id.hex()[:16]} at {self.address or self.source_address}, {self.state.value})"

    @property
    def is_up(self) -> bool:
        """Whether a node can live here now."""
        return self.state is HostState.UP

    def mount(self, prefix: str, endpoints: Mapping[str, Callable[[Mapping[str, Any], CallContext], Any]]) -> None:
        """Serve these endpoints, named in full. Raises ConfigError for a name that does not start with `prefix`."""
        self._endpoints.mount(prefix, endpoints)

    def mounted(self, endpoint: str) -> MountedHandler | None:
        """The handler of an endpoint. It raises RemoteError and nothing else."""
        return self._endpoints.mounted(endpoint)

    def stop(self) -> None:
        """Leave in good order: every peer with a session is told. Later dials are refused."""
        self.peers.say_goodbye()
        self._go_down(HostState.STOPPED, "stop")

    def crash(self) -> None:
        """Lose everything and tell nobody. Whoever sends something is refused: the machine answers, no process does."""
        self._go_down(HostState.STOPPED, "crash")

    def fall_silent(self) -> None:
        """Lose everything and answer nothing any more, as a machine does that lost its power or its link."""
        self._go_down(HostState.SILENT, "fall silent")

    def restart(self) -> None:
        """Come up again, with the same key and address, no sessions and nothing mounted."""
        if self.state is HostState.UP:
            self._go_down(HostState.STOPPED, "crash")
        self._endpoints = self._new_endpoints()
        self.state = HostState.UP
        self.network.digest.add_fault(self.network.loop.now_us, self.id, "restart")

    def _new_endpoints(self) -> EndpointDirectory:
        endpoints = EndpointDirectory(token_bytes=self.runtime.token_bytes)
        endpoints.mount("_synapse.", {PING_ENDPOINT: lambda request, context: "pong"})
        return endpoints

    def _go_down(self, state: HostState, fault: str) -> None:
        self.state = state
        self.incarnation += 1
        self.peers.lose_everything()
        self.network.digest.add_fault(self.network.loop.now_us, self.id, fault)

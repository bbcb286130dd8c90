"""A network in virtual time: its hosts, by address, and what a scenario can do to them.

Messages are the encoded bytes of the real wire; what is left out is the encryption around them. How they travel is in
`delivery.py`, how hosts talk in `pool.py`, `dialing.py` and `connection.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from simulations.connection import Station
from simulations.delivery import Delivery, Digest, HostState, Receive
from simulations.latency import ConstantLatency, Latency
from simulations.links import Cut, LinkQuality, Nat
from simulations.pool import VirtualPool
from simulations.virtual_loop import VirtualLoop
from synapse_p2p.config import ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import SEED_SIZE_BYTES, Identity, NodeID
from synapse_p2p.runtime import Runtime

__all__ = [
    "EPOCH_S",
    "MAX_HOSTS",
    "ConstantLatency",
    "Cut",
    "Digest",
    "HostState",
    "Latency",
    "LinkQuality",
    "Nat",
    "Receive",
    "VirtualHost",
    "VirtualNetwork",
]

EPOCH_S = 1_767_225_600.0
"""What the wall clocks of all hosts show when the virtual clock shows 0: the start of 2026, UTC."""
LISTEN_PORT = 9000
SOURCE_PORT = 40_000  # where the connections that a host opens come from
MAX_HOSTS = 2**24 - 1  # addresses in 10/8, without its first


class VirtualNetwork(Delivery):
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
        super().__init__(loop, random.Random(rng.getrandbits(64)), latency, digest)
        self.config = config or ServerConfig()
        self._rng = rng
        self._hosts: dict[str, VirtualHost] = {}
        self._host_count = 0

    def host(
        self, *, network: str = "", ip: str | None = None, port: int = LISTEN_PORT, identity: Identity | None = None
    ) -> VirtualHost:
        """A new host that others can dial: at the next private address and with a key that chance draws, where nothing
        is said. Several processes on one machine have ports of their own. Raises ConfigError for an address that is
        taken.
        """
        ip = self._next_ip() if ip is None else ip
        address = f"{ip}:{port}"
        if address in self._hosts:
            raise ConfigError(f"somebody lives at {address} already")
        host = self._hosts[address] = self._make_host(ip, address, network, identity)
        return host

    def remove(self, host: VirtualHost) -> None:
        """Its machine is gone for good: from now on the address leads nowhere, and dials of it time out."""
        del self._hosts[host.address]

    def client(self, *, network: str = "") -> VirtualHost:
        """A new host that nobody can dial; who is dialed by it can call it back."""
        return self._make_host(self._next_ip(), "", network)

    def awake_s(self, host: NodeID) -> float:
        """Seconds of the loop in which this host's process did not stand still."""
        return self.pauses.awake_s(host)

    def at(self, address: str) -> VirtualHost | None:
        """Who has this address; None for an address that leads nowhere."""
        return self._hosts.get(address)

    def ids_up(self) -> list[NodeID]:
        """Of all hosts that can be dialed and are up, in the order in which they came."""
        return [host.id for host in self._hosts.values() if host.state is HostState.UP]

    def _next_ip(self) -> str:
        if self._host_count == MAX_HOSTS:
            raise ConfigError(f"a virtual network has room for {MAX_HOSTS} hosts")
        self._host_count += 1
        a, b, c = self._host_count.to_bytes(3, "big")
        return f"10.{a}.{b}.{c}"

    def _make_host(self, ip: str, address: str, network: str, identity: Identity | None = None) -> VirtualHost:
        rng = random.Random(self._rng.getrandbits(64))
        loop = self.loop
        runtime = Runtime(
            now=loop.time,
            unix_now=lambda: EPOCH_S + loop.time(),
            rng=rng,
            token_bytes=rng.randbytes,
        )
        if identity is None:
            identity = Identity.from_seed(self._rng.randbytes(SEED_SIZE_BYTES))
        return VirtualHost(self, identity, runtime, f"{ip}:{SOURCE_PORT}", address, network)


class VirtualHost(Station):
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
        super().__init__(network, network.config, identity, runtime, source_address, address, network_name)
        self.network = network
        self.advertised_addresses = (address,) if address else ()
        self.trust = network.config.trust
        self.peers = self.sessions = VirtualPool(self, network.at)

    def __repr__(self) -> str:
        return f"VirtualHost({self.id.hex()[:16]} at {self.address or self.source_address}, {self.state.value})"

    def mount(self, prefix: str, endpoints: Mapping[str, Callable[[Mapping[str, Any], CallContext], Any]]) -> None:
        """Serve these endpoints, named in full. Raises ConfigError for a name that does not start with `prefix`."""
        self.endpoints.mount(prefix, endpoints)

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
        self.network.lose_stopped(self)

    def put_behind(self, nat: Nat) -> None:
        """From now on this is what becomes of dials of this host. Sessions that are open stay."""
        self.nat = nat
        self.network.digest.add_fault(self.network.loop.now_us, self.id, f"nat {nat.value}")

    def restart(self) -> None:
        """Come up again, with the same key and address, no sessions and nothing mounted."""
        if self.state is HostState.UP:
            self._go_down(HostState.STOPPED, "crash")
        self.state = HostState.UP
        self.network.digest.add_fault(self.network.loop.now_us, self.id, "restart")

    def _go_down(self, state: HostState, fault: str) -> None:
        self.state = state
        self.incarnation += 1
        # With them goes the node, its table and its store: others keep the host for as long as they have a session.
        self.endpoints = self._new_endpoints()
        self.peers.lose_everything()
        self.network.pauses.end(self.id)  # the next process does not stand still
        self.network.digest.add_fault(self.network.loop.now_us, self.id, fault)

"""A node that nobody can dial is a client: has contacts dial us where nobody has, and says so where they cannot.

It owns the machine of `reachability.py`; what is asked, and of whom, is decided here.
"""

from __future__ import annotations

import contextlib
import logging

from dht.config import DHTConfig
from dht.presence import Presence
from dht.reachability import MAX_PROVERS, Finding, Reachability
from dht.requester import UNREACHABLE, Requester
from dht.routing import RoutingTable
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.peers import Host

logger = logging.getLogger(__name__)

SAMPLED_PER_PROVER = 4  # several contacts may be one party


class ReachWatch:
    """One node's watch over where others dial it."""

    def __init__(
        self, host: Host, config: DHTConfig, table: RoutingTable, requester: Requester, presence: Presence
    ) -> None:
        self._host = host
        self._table = table
        self._requester = requester
        self._presence = presence
        self._reachability = Reachability(prove_s=config.prove_s, pause_s=config.prove_pause_s)
        self._known_addresses: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others dial us; empty for a client, and where it was found out that nobody can."""
        addresses = self._host.advertised_addresses
        return addresses if self._reachability.is_dialable(self._host.peers.dialed_at) else ()

    def has_moved(self) -> bool:
        """Whether our address is another than the last time that this was asked."""
        had, self._known_addresses = self._known_addresses, self._host.advertised_addresses
        has_moved = bool(had and self._known_addresses) and had != self._known_addresses
        if has_moved:
            self._reachability.on_moved(self._host.runtime.now())
        return has_moved

    async def look(self) -> bool:
        """Draw the conclusion where some were asked, and ask some where it is time. True where we are in reach again,
        which nobody knows yet. Cost: mostly nothing, else MAX_PROVERS requests and as many check dials of others.
        """
        peers, now = self._host.peers, self._host.runtime.now()
        if not self._known_addresses or self._presence.is_network_lost:
            return False
        match found := self._reachability.look(peers.dialed_at, now):
            case Finding.OUT_OF_REACH:
                logger.warning(
                    "nobody can dial %s, though peers tried: a NAT or a firewall keeps them out. This node is a client "
                    "until somebody gets through: it keeps nothing for others, and they do not find its agent. Open or "
                    "forward that port, and give advertise= where it is another outside",
                    ", ".join(self._known_addresses),
                )
            case Finding.REACHED:
                logger.info("somebody dialed %s: no client any more", ", ".join(self._known_addresses))
            case Finding.NOTHING:
                pass
        if len(self._table) and self._reachability.is_due(peers.dialed_at, now):
            await self._have_it_proved()
        return found is Finding.REACHED

    async def _have_it_proved(self) -> None:
        self._reachability.on_asking(self._host.runtime.now())
        sample = self._table.sample(SAMPLED_PER_PROVER * MAX_PROVERS, self._host.runtime.rng)
        by_party = {self._requester.party_of(contact): contact for contact in sample}
        for contact in list(by_party.values())[:MAX_PROVERS]:
            with contextlib.suppress(*UNREACHABLE, RemoteError, InvalidMessageError):
                answer = await self._requester.ping(contact, prove=True)
                self._reachability.on_answer(is_willing=answer.dials)

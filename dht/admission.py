"""Who is let into the routing table: nobody by word alone.

Pure. What has to be proved is that this id listens at this address. A dial of ours that was answered proves it; a peer
that dialed us is a candidate, and a check dial decides. Candidates are strangers' wishes, so they are few and their
rate is bounded: at most one check dial of one address in `pause_s`.
"""

from __future__ import annotations

from collections import OrderedDict

from dht.contact import Contact
from synapse_p2p.transport.base import parse_address
from synapse_p2p.trust import TrustConfig, machine_of

MAX_WAITING = 64
"""Candidates that wait for a check dial; one more is forgotten, and comes again when it asks again."""
RETURN_PAUSE_S = 2.0
"""Before who was a contact is dialed again: what one costs us that comes and goes all the time."""
PROVE_PAUSE_S = 30.0
"""Before an address is dialed again whose owner asks for that, to know whether it can be reached."""
MAX_REMEMBERED = 1024
"""Addresses, and sources, of which the last check dial is remembered; past it the oldest goes."""


class Candidates:
    """Those who want to be contacts, in the order in which they came.

    A candidate's first address is where it was seen, with the port that it announced: nobody has us dial a third party.
    Of one source, that is a host that `trust` does not exempt, one at a time waits.
    """

    def __init__(self, *, pause_s: float, source_pause_s: float = 1.0, trust: TrustConfig | None = None) -> None:
        self._pause_s = pause_s
        self._source_pause_s = source_pause_s
        self._trust = trust or TrustConfig()
        self._waiting: OrderedDict[str, tuple[Contact, bool]] = OrderedDict()  # by the address to dial; who has asked
        self._waiting_sources: set[str] = set()
        self._dialed_at: OrderedDict[str, float] = OrderedDict()
        self._source_dialed_at: OrderedDict[str, float] = OrderedDict()

    def offer(self, contact: Contact, now: float, *, has_asked: bool = False) -> bool:
        """Remember a candidate by its first address; whether it waits now for a check dial. One that `has_asked` for
        it waits for less, and whether there is room for it or not.
        """
        address = contact.addresses[0]
        pause_s = min(PROVE_PAUSE_S, self._pause_s) if has_asked else self._pause_s
        if _is_within(self._dialed_at, address, now - pause_s):
            return False
        if address in self._waiting or len(self._waiting) >= MAX_WAITING:
            return False
        source = self._source_of(address)
        if source is not None:
            if source in self._waiting_sources:
                return False
            if _is_within(self._source_dialed_at, source, now - self._source_pause_s):
                return False
            self._waiting_sources.add(source)
        self._waiting[address] = contact, has_asked
        return True

    def take(self, now: float) -> tuple[Contact, bool] | None:
        """The next to check-dial now, and whether it has asked for that; None when nobody waits."""
        if not self._waiting:
            return None
        address, candidate = self._waiting.popitem(last=False)
        _note(self._dialed_at, address, now)
        source = self._source_of(address)
        if source is not None:
            self._waiting_sources.discard(source)
            _note(self._source_dialed_at, source, now)
        return candidate

    def forget(self, contact: Contact, now: float) -> None:
        """It was a contact and is none any more: from a moment from now on it may come back, and prove its address."""
        for address in contact.addresses:
            if address in self._dialed_at:
                self._dialed_at[address] = min(self._dialed_at[address], now - self._pause_s + RETURN_PAUSE_S)

    def __len__(self) -> int:
        return len(self._waiting)

    def check_invariants(self) -> None:
        """Assert the bounds; for tests."""
        assert len(self._waiting) <= MAX_WAITING
        assert len(self._dialed_at) <= MAX_REMEMBERED
        assert len(self._source_dialed_at) <= MAX_REMEMBERED
        sources = [source for source in map(self._source_of, self._waiting) if source is not None]
        assert len(set(sources)) == len(sources)
        assert set(sources) == self._waiting_sources

    def _source_of(self, address: str) -> str | None:
        """What of an address is counted as one; None for an exempt host."""
        host, _ = parse_address(address)
        return None if self._trust.is_exempt(host) else machine_of(host)


def _is_within(times: OrderedDict[str, float], name: str, since: float) -> bool:
    last = times.get(name)
    return last is not None and last > since


def _note(times: OrderedDict[str, float], name: str, now: float) -> None:
    times[name] = now
    times.move_to_end(name)
    if len(times) > MAX_REMEMBERED:
        times.popitem(last=False)

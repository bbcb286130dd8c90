"""Who is let into the routing table: nobody by word alone.

Pure. What has to be proved is that this id listens at this address. A dial of ours that was answered proves it; a peer
that dialed us is a candidate, and a check dial decides. Candidates are strangers' wishes, so they are few and their
rate is bounded: at most one check dial of one address in `pause_s`.
"""

from __future__ import annotations

from collections import OrderedDict

from dht.contact import Contact

MAX_WAITING = 64
"""Candidates that wait for a check dial; one more is forgotten, and comes again when it asks again."""
MAX_REMEMBERED = 1024
"""Addresses of which the last check dial is remembered; past it the oldest goes."""


class Candidates:
    """Those who want to be contacts, in the order in which they came."""

    def __init__(self, *, pause_s: float) -> None:
        self._pause_s = pause_s
        self._waiting: OrderedDict[str, Contact] = OrderedDict()  # by the address to dial
        self._dialed_at: OrderedDict[str, float] = OrderedDict()

    def offer(self, contact: Contact, now: float) -> bool:
        """Remember a candidate by its first address; whether it waits now for a check dial."""
        address = contact.addresses[0]
        last = self._dialed_at.get(address)
        if last is not None and now - last < self._pause_s:
            return False
        if address in self._waiting or len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting[address] = contact
        return True

    def take(self, now: float) -> Contact | None:
        """The next to check-dial now; None when nobody waits."""
        if not self._waiting:
            return None
        address, contact = self._waiting.popitem(last=False)
        self._dialed_at[address] = now
        self._dialed_at.move_to_end(address)
        if len(self._dialed_at) > MAX_REMEMBERED:
            self._dialed_at.popitem(last=False)
        return contact

    def __len__(self) -> int:
        return len(self._waiting)

    def check_invariants(self) -> None:
        """Assert the bounds; for tests."""
        assert len(self._waiting) <= MAX_WAITING
        assert len(self._dialed_at) <= MAX_REMEMBERED

"""When an agent's record has to be stored anew: what it offers has changed, or nobody keeps it yet.

Pure. The renewal of a lease is not decided here: it comes by the clock alone.

    kept        the offer changed                -> due
    due         a publication began              -> under way
    under way   somebody keeps every part of it  -> kept
    under way   somebody does not                -> waiting, twice as long each time
    waiting     the time is over                 -> due
"""

from __future__ import annotations

from dataclasses import dataclass

from dht.agents.record import CapabilityClaim


@dataclass(frozen=True, slots=True)
class Offer:
    """What a record says that may change while an agent runs: where it is, and what it can do."""

    addresses: tuple[str, ...]
    claims: tuple[CapabilityClaim, ...]


class Publishing:
    """The state of one agent's record among its storers. Nothing was published at first."""

    def __init__(self, *, retry_min_s: float, retry_max_s: float) -> None:
        self._retry_min_s = retry_min_s
        self._retry_max_s = retry_max_s
        self._pause_s = retry_min_s
        self._offer: Offer | None = None
        self._is_kept = False
        self._under_way_count = 0
        self._retry_at = 0.0

    def begin(self, offer: Offer) -> None:
        """A publication begins; `end` has to follow."""
        if offer != self._offer:
            self._pause_s = self._retry_min_s
        self._offer = offer
        self._is_kept = False
        self._under_way_count += 1

    def end(self, offer: Offer, *, is_kept: bool, now: float) -> None:
        """It is over. `is_kept` says whether others can find all of it."""
        self._under_way_count -= 1
        if offer != self._offer:
            return  # a newer one has begun, and speaks for itself
        self._is_kept = is_kept
        self._retry_at = now + self._pause_s
        self._pause_s = self._retry_min_s if is_kept else min(2 * self._pause_s, self._retry_max_s)

    def is_due(self, offer: Offer, now: float) -> bool:
        """Whether it is time to publish this offer."""
        if offer != self._offer:
            return True
        return not self._is_kept and not self._under_way_count and now >= self._retry_at

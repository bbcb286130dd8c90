"""Whether others can dial us: found out by asking for it, where nobody has done so by himself.

Pure. Whoever lets us into its table has dialed us before, so mostly somebody has soon. That nobody has proves nothing:
tables may be full. So some contacts are asked to dial us, whether they have room or not. Where enough of them say that
they do, and nobody comes, a NAT or a firewall keeps them out.
"""

from __future__ import annotations

from enum import Enum

MAX_PROVERS = 5
"""Contacts asked to dial us, of as many parties."""
MIN_PROVERS = 3
"""Of them so many have to say that they do, or all where there are fewer: one may say so and not do it."""


class Finding(Enum):
    """What has changed."""

    NOTHING = "nothing"
    REACHED = "somebody dialed us again"
    OUT_OF_REACH = "nobody could dial us"


class Reachability:
    """What one node knows of that. A `dialed_at` is when a member last dialed us, None where none ever has. Those asked
    are given `prove_s`, and `pause_s` after that they are asked again.

    unknown        somebody has dialed us since we came here      -> proved
    unknown        is_due: some are asked                         -> asked
    asked          somebody has dialed us                         -> proved
    asked          prove_s later nobody has, though enough do     -> out of reach
    asked          prove_s later too few do                       -> unknown, for pause_s
    out of reach   somebody has dialed us                         -> proved
    out of reach   pause_s later some are asked                   -> still out of reach, and asked
    any            our address has changed                        -> not proved any more
    """

    def __init__(self, *, prove_s: float, pause_s: float) -> None:
        self._prove_s = prove_s
        self._pause_s = pause_s
        self._here_since = float("-inf")
        self._asked_at: float | None = None
        self._asked = self._willing = 0
        self._ask_at = float("-inf")
        self._given_up_at: float | None = None

    def is_dialable(self, dialed_at: float | None) -> bool:
        """Whether others can dial us: we are out of reach until somebody does, and not before that is found out."""
        return self._given_up_at is None or (dialed_at is not None and dialed_at > self._given_up_at)

    def is_due(self, dialed_at: float | None, now: float) -> bool:
        """Whether some contacts are to be asked now."""
        return not self._is_proved(dialed_at) and self._asked_at is None and now >= self._ask_at

    def on_asking(self, now: float) -> None:
        """They are asked now; what each says is told to `on_answer`."""
        self._asked_at, self._asked, self._willing = now, 0, 0

    def on_answer(self, *, is_willing: bool) -> None:
        """One of them says whether it dials us."""
        self._asked += 1
        self._willing += is_willing

    def on_moved(self, now: float) -> None:
        """Our address is another from now on: of that one nothing is known yet, and neighbours come by themselves."""
        self._here_since, self._asked_at, self._ask_at = now, None, now + self._prove_s

    def look(self, dialed_at: float | None, now: float) -> Finding:
        """What has come of it by now."""
        if self._is_proved(dialed_at):
            had_given_up, self._given_up_at, self._asked_at = self._given_up_at is not None, None, None
            return Finding.REACHED if had_given_up else Finding.NOTHING
        if self._asked_at is None or now - self._asked_at < self._prove_s:
            return Finding.NOTHING
        self._asked_at, self._ask_at = None, now + self._pause_s
        if self._given_up_at is not None or self._willing < max(1, min(MIN_PROVERS, self._asked)):
            return Finding.NOTHING
        self._given_up_at = now
        return Finding.OUT_OF_REACH

    def _is_proved(self, dialed_at: float | None) -> bool:
        since = self._here_since if self._given_up_at is None else max(self._here_since, self._given_up_at)
        return dialed_at is not None and dialed_at > since

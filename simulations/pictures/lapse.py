"""Success over time, in steps that have enough lookups to tell, and the faults meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.pictures.shapes import Lapse, LeftOut, Picture, Share, Step
from simulations.samples import FOUND, MISSED, Timeline
from simulations.statistics import wilson_low

LOOKUPS_PER_STEP = 40
"""Where all of so many succeed, the interval of their share begins at 91 %; with fewer it hides what is to be seen."""
FEW_STEPS, MAX_STEPS = 8, 64
"""Of few lookups a step has fewer, for some steps there have to be; of many it has more."""
GAP_BINS = 8
"""Bins of a timeline without a lookup that end a step: what is before and after such a pause is no one thing."""
MAX_MARKS = 12
"""Faults at more moments than these are shown beneath the curve alone: so many lines through it would hide it."""
_UNITS = ((3 * 3600.0, "h", 3600.0), (600.0, "min", 60.0), (0.0, "s", 1.0))

Times = Sequence[tuple[float, int]]
"""When something happened, and how often."""


def success_picture(timeline: Timeline) -> Picture | LeftOut:
    """What became of lookups, by when they began."""
    title = "Success over time"
    found, missed = (timeline.counts.get(what, ()) for what in (FOUND, MISSED))
    spans = spans_of(found or [0] * len(missed), missed or [0] * len(found))
    if not spans:
        return LeftOut(title, "this scenario does not say when its lookups succeed, or none had ended")
    first, end = max(0, spans[0].first - 1), spans[-1].end + 1
    unit, unit_s = next((unit, unit_s) for least, unit, unit_s in _UNITS if end * timeline.width_s >= least)
    width = timeline.width_s / unit_s
    steps = [
        Step(span.first * width, span.end * width, share_of(span.middle * width, span.found, span.count))
        for span in spans
    ]
    faults, earlier = _faults(timeline, first, end, width)
    marks = sorted({at for _, times in faults for at, _ in times})
    successes, count = sum(found), sum(found) + sum(missed)
    totals = ", ".join(f"{sum(each for _, each in times):,} x {kind}" for kind, times in faults) or "none"
    worst = min((step.share for step in steps), key=lambda share: share.y)
    return Picture(
        "success",
        title,
        f"{count:,} lookups",
        f"{successes:,} of {count:,} succeeded. The worst step had {worst.y:.1%}, about {worst.x:.3g} {unit}. "
        f"Faults meanwhile: {totals}.",
        f"{successes:,} of {count:,} lookups, by when they began; a step has {min(span.count for span in spans):,} to "
        f"{max(span.count for span in spans):,} of them, and its band is the 95 % Wilson interval. Faults by the "
        f"number of hosts: {totals}" + (f"; {earlier:,} before what is shown." if earlier else "."),
        Lapse(unit, width, first * width, end * width, steps, faults, marks if len(marks) <= MAX_MARKS else ()),
    )


class Span:
    """Bins from `first` to before `end`, and the lookups that began in them."""

    def __init__(self, first: int) -> None:
        self.first = self.end = first
        self.found = 0
        self.count = 0

    @property
    def middle(self) -> float:
        return (self.first + self.end) / 2

    def take(self, number: int, found: int, count: int) -> None:
        """One more bin, which goes on where this ends or later."""
        self.end = number + 1
        self.found += found
        self.count += count


def spans_of(found: Sequence[int], missed: Sequence[int]) -> list[Span]:
    """All bins with lookups, put together until there are enough to tell; what remains at last goes to those before."""
    total = sum(found) + sum(missed)
    enough = max(total / MAX_STEPS, min(LOOKUPS_PER_STEP, total / FEW_STEPS))
    spans: list[Span] = []
    for number, (good, bad) in enumerate(zip(found, missed, strict=True)):
        if not good + bad:
            continue
        is_apart = not spans or number - spans[-1].end >= GAP_BINS
        is_little = sum(found[number:]) + sum(missed[number:]) < enough / 2
        if is_apart or (spans[-1].count >= enough and not is_little):
            spans.append(Span(number))
        spans[-1].take(number, good, good + bad)
    return spans


def share_of(x: float, successes: int, trials: int) -> Share:
    """A share with its Wilson interval of 95 %."""
    return Share(x, wilson_low(successes, trials), successes / trials, 1 - wilson_low(trials - successes, trials))


def _faults(timeline: Timeline, first: int, end: int, width: float) -> tuple[list[tuple[str, Times]], int]:
    """Those of these bins by kind, and how many there were before."""
    shown: list[tuple[str, Times]] = []
    earlier = 0
    for kind in sorted(timeline.counts.keys() - {FOUND, MISSED}):
        counts = timeline.counts[kind]
        earlier += sum(counts[:first])
        times = [((number + 0.5) * width, count) for number, count in enumerate(counts[:end]) if count]
        times = [(at, count) for at, count in times if at > first * width]
        if times:
            shown.append((kind, times))
    return shown, earlier

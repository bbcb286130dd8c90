"""Which pictures one run has, from its figures and samples, and which it has not. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from simulations.model import MODEL_K, MODEL_MIN_NODES, expected_hops
from simulations.pictures.circle import circle_picture
from simulations.pictures.lapse import success_picture
from simulations.pictures.shapes import Curve, HopBars, Latencies, LeftOut, Loads, Picture
from simulations.samples import MAX_SECONDS, Reservoir, Samples
from simulations.statistics import quantile

MAX_CURVE_POINTS = 400
LEAST_SHOWN_S = 0.001
"""A lookup that needs no request takes no time, and a logarithmic axis has no place for 0."""
LONG_TAIL = 20
"""From so many times the median on, the most needs a logarithmic axis for the rest to be seen."""
MAX_LOAD_STEPS = 40


def pictures_of_run(figures: Mapping[str, Any], samples: Samples | None) -> tuple[list[Picture], list[LeftOut]]:
    """Of a run: what there is to draw, and what there is not, with the reason."""
    made: list[Picture | LeftOut] = [_hops(figures)]
    if samples is None:
        made.append(LeftOut("All others", "the engine of this scenario keeps nothing to draw them from"))
    else:
        made += [_latency(samples), success_picture(samples.timeline), _load(samples), _circle(samples), _RESPONSE]
    return [each for each in made if isinstance(each, Picture)], [each for each in made if isinstance(each, LeftOut)]


_RESPONSE = LeftOut(
    "Success against the dead, the hostile, or the length of a session",
    "one run has one of each; a sweep over variants of overlay-massacre, overlay-hostile or overlay-churn shows it",
)


def _hops(figures: Mapping[str, Any]) -> Picture | LeftOut:
    title = "Hops of a lookup"
    if not figures.get("hops"):
        return LeftOut(title, "this scenario does not count hops, or nothing was found")
    counts = sorted((int(hops), count) for hops, count in figures["hops"].items())
    lookups, mean, nodes = sum(count for _, count in counts), figures["mean_hops"], figures["nodes"]
    model = expected_hops(nodes)
    beyond = f"; it was fitted from {MODEL_MIN_NODES:,} nodes on" if nodes < MODEL_MIN_NODES else ""
    return Picture(
        "hops",
        title,
        f"{lookups:,} lookups among {nodes:,} nodes",
        f"Bars of how many of {lookups:,} lookups took how many hops, from {counts[0][0]} to {counts[-1][0]}; "
        f"the mean is {mean:.2f}, the model's {model:.2f}.",
        f"{lookups:,} lookups that found their target, among {nodes:,} nodes. The mean is {mean:.3f}; the model "
        f"0.38 + 0.149 log2 n (k = {MODEL_K}, tables filled by an oracle) says {model:.3f}{beyond}. A contact of one's "
        "own is hop 1.",
        HopBars(counts, mean, model, f"model: 0.38 + 0.149 log2 n = {model:.2f}"),
    )


def _latency(samples: Samples) -> Picture | LeftOut:
    title = "How long a lookup takes"
    if not samples.seconds:
        return LeftOut(title, "this scenario does not time what it does, or nothing had ended")
    seconds = {kind: [max(LEAST_SHOWN_S, each) for each in kept.values] for kind, kept in samples.seconds.items()}
    is_log = any(max(values) > LONG_TAIL * quantile(values, 0.5) for values in seconds.values())
    quantiles = [
        f"{kind} ({_size(samples.seconds[kind])}): median {_time(quantile(values, 0.5))}, "
        f"99 % within {_time(quantile(values, 0.99))}"
        for kind, values in seconds.items()
    ]
    is_clipped = is_log and any(min(kept.values) < LEAST_SHOWN_S for kept in samples.seconds.values())
    return Picture(
        "latency",
        title,
        f"{sum(kept.count for kept in samples.seconds.values()):,} lookups",
        f"Cumulative shares by virtual time. {'; '.join(quantiles)}.",
        f"Virtual time from the begin to the end of each, those that failed too. {'; '.join(quantiles)}."
        + (" Under 1 ms is drawn at 1 ms." if is_clipped else ""),
        Latencies([curve_of(kind, values) for kind, values in seconds.items()], is_log),
    )


def curve_of(label: str, values: Sequence[float]) -> Curve:
    """The cumulative distribution, in MAX_CURVE_POINTS steps at most; its first and last value are always there."""
    in_order = sorted(values)
    last = len(in_order) - 1
    steps = min(last, MAX_CURVE_POINTS - 1)
    places = [number * last // steps for number in range(steps + 1)] if steps else [0]
    return Curve(label, [in_order[place] for place in places], [(place + 1) / (last + 1) for place in places])


def _load(samples: Samples) -> Picture | LeftOut:
    title = "How the load is spread"
    counts = sorted(samples.arrivals.values())
    if not counts:
        return LeftOut(title, "no message arrived anywhere")
    median, p99, most, total = quantile(counts, 0.5), quantile(counts, 0.99), counts[-1], sum(counts)
    mean = total / len(counts)
    is_log = most > LONG_TAIL * median
    top = counts[-(len(counts) // 100) :]
    return Picture(
        "load",
        title,
        f"{total:,} messages at {len(counts):,} hosts",
        f"A histogram of messages by node: median {median:,}, 99 % at most {p99:,}, the busiest {most:,}.",
        f"{total:,} messages, requests and answers, that arrived at {len(counts):,} hosts in the whole run, those that "
        f"came late or went early too. Mean {mean:,.0f}, median {median:,}; the busiest had {most / mean:.1f} times "
        f"the mean" + (f", and the busiest 1 % had {sum(top) / total:.1%} of all." if len(counts) >= 100 else "."),
        Loads(*histogram_of(counts, is_log=is_log), median, p99, most, is_log),
    )


def histogram_of(values: Sequence[int], *, is_log: bool) -> tuple[list[float], list[int]]:
    """Edges of steps of one width, or of one factor, from the least to the most of these, which ascend; and how many
    are in each. No values under 1.
    """
    least, most = values[0], values[-1] + 1
    steps = min(MAX_LOAD_STEPS, most - least, 2 * math.ceil(math.sqrt(len(values))))
    if is_log:
        edges = [least * math.exp(math.log(most / least) * step / steps) for step in range(steps + 1)]
    else:
        width = -(-(most - least) // steps)  # a whole number, for else some steps would have more numbers than others
        steps = -(-(most - least) // width)
        edges = [float(least + width * step) for step in range(steps + 1)]
    counts = [0] * steps
    for value in values:
        counts[min(steps, bisect_right(edges, value)) - 1] += 1
    return edges, counts


def _circle(samples: Samples) -> Picture | LeftOut:
    if samples.traced is None or not samples.traced.outcome.trace:
        return LeftOut("One lookup in the key space", "no lookup of this scenario hands out its trace")
    return circle_picture(samples.traced)


def _size(kept: Reservoir) -> str:
    of_them = "" if kept.count <= MAX_SECONDS else f", {MAX_SECONDS:,} of them at random"
    return f"{kept.count:,}{of_them}"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.2f} s"

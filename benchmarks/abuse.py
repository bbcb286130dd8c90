"""A node under abuse, over real sockets: what an honest client feels of it, what it costs, and how soon it is over.

    python -m benchmarks.abuse [NAME ...] [--short] [--json]

Three processes: the node that is attacked, an honest client that calls at a steady pace and connects anew now and then,
and the attackers, each on an address of its own below 127; no address is exempt from any limit. Each attack is played
between two stretches in which the client is alone, and compared with these. The exit status is 1 when a limit was
missed. Linux alone.

The node and its client share a core, and the attackers have another, where there are two: who attacks from elsewhere
takes no time from whom it attacks, nor what a core has learned of its code. They yield where there is but one. In the
short form, which the tests play beside others, nobody is bound to a core, and attackers that yield would never have
their turn; the client's figures do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from benchmarks.abuse_attacks import SLOW_BODY_BYTES
from benchmarks.abuse_ends import DESCRIPTORS, config_of
from benchmarks.placing import fixed_layout
from synapse_p2p.config import MIB
from synapse_p2p.transport.byte_budget import FREE_BYTES, MAX_PROCESS_BYTES

MAX_CPU_RATIO = 1.2  # of the client's CPU per call, attacked to alone
MAX_P99_RATIO = 3.0
MAX_CONNECT_P99_S = 1.0
MAX_GROWTH_BYTES = 32 * MIB  # of the node, beside what its byte budgets allow
GONE_SLACK_S = 1.5  # not all of them are there at once, nor is it looked at all the time
MIN_SHARE_MADE = 0.9  # of an attack: less, and it was none of this size
LOOK_EVERY_S = 0.1
LONGER_S = 5.0  # for the client to have done something, on a busy machine
OWN_DESCRIPTORS = 3  # by which the client's connects make the count sway
HEADER_S = 3.0  # in which four bytes are sent, one a second


@dataclass(frozen=True, slots=True)
class Attack:
    """What is done: `count` of it, or that many in each second of a flow.

    Whoever does it has to be gone `gone_s` after the last of it. The node may grow by `allowed_bytes` beside
    MAX_GROWTH_BYTES. Where there are `descriptors`, it may open so many more than it has open, and no others.
    """

    name: str
    count: int
    gone_s: float
    flow_s: float = 0.0
    allowed_bytes: int = 0
    descriptors: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """How large and how long all of it is played; `config` are fields of the node's ServerConfig."""

    scale: float = 1.0
    connects_s: float = 20.0
    full_speed_s: float = 10.0
    alone_s: float = 8.0  # that the client is alone, before and after
    is_judged_by_costs: bool = True  # cores are shared out, and the attackers yield: the client's own figures count
    config: Mapping[str, Any] = field(default_factory=dict)

    def attacks(self) -> dict[str, Attack]:
        """By name, with the deadlines that the node has for each."""
        config = config_of(self.config)
        slow_s = config.header_timeout_s
        if slow_s > HEADER_S:
            slow_s = HEADER_S + config.body_grace_s + SLOW_BODY_BYTES / config.min_body_bytes_per_s
        readers = self._scaled(100)
        one_session_bytes = config.session.max_waiting_bytes + config.session.max_unsent_bytes
        attacks = (
            Attack("connects", self._scaled(2000), config.header_timeout_s, flow_s=self.connects_s),
            Attack("half_headers", self._scaled(500), config.header_timeout_s),
            Attack("half_handshakes", self._scaled(500), config.session.handshake_timeout_s),
            Attack("slow_senders", self._scaled(500), slow_s),
            Attack(
                "unread_results",
                readers,
                config.session.write_stall_s,
                allowed_bytes=MAX_PROCESS_BYTES + readers * FREE_BYTES,
            ),
            Attack("full_speed", 1, 0.0, flow_s=self.full_speed_s, allowed_bytes=one_session_bytes),
            Attack("silent", self._scaled(500), config.header_timeout_s, descriptors=self._scaled(100)),
        )
        return {attack.name: attack for attack in attacks}

    def _scaled(self, count: int) -> int:
        return max(1, round(count * self.scale))


FULL = Form()
SHORT = Form(
    scale=0.2,
    connects_s=1.0,
    full_speed_s=1.0,
    alone_s=0.4,
    is_judged_by_costs=False,
    config={
        "header_timeout_s": 1.0,
        "body_grace_s": 1.0,
        "session": {"handshake_timeout_s": 1.0, "write_stall_s": 1.0},
    },
)


@dataclass(slots=True)
class Felt:
    """What the client saw in one stretch or several."""

    calls_s: list[float] = field(default_factory=list)
    connects_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)  # of a call, batch by batch
    failures: list[str] = field(default_factory=list)

    def __add__(self, other: Felt) -> Felt:
        return Felt(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def p99_s(self) -> float:
        """Of the calls; 0 where there were none."""
        return _p99(self.calls_s)

    @property
    def p50_s(self) -> float:
        """That of half of them."""
        return median(self.calls_s or (0.0,))

    @property
    def connect_p99_s(self) -> float:
        """From the dial to the first answer, over a new connection."""
        return _p99(self.connects_s)

    @property
    def call_cpu_us(self) -> float:
        """The client's CPU for a call, that of the cheaper batches: of four, three take as much or more.

        A guest's speed sways by a fifth for seconds, and what an attack costs is there in all of them.
        """
        return quantiles(self.cpu_us, n=4)[0] if len(self.cpu_us) > 1 else sum(self.cpu_us)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack, seen from all sides."""

    attack: Attack
    made: int
    refused: int
    alone: Felt
    attacked: Felt
    node_share_alone: float  # of a core
    node_share_attacked: float
    growth_bytes: int
    gone_s: float | None  # None: not within twice the time

    @property
    def cpu_ratio(self) -> float:
        """The client's CPU per call, attacked to alone."""
        return self.attacked.call_cpu_us / max(self.alone.call_cpu_us, 1e-9)

    @property
    def p99_ratio(self) -> float:
        """That of its calls."""
        return self.attacked.p99_s / max(self.alone.p99_s, 1e-9)

    def misses(self, *, slack: float = 1.0, costs: bool = True) -> list[str]:
        """The limits that did not hold; those of wall time by `slack` times as far, those of the client's own figures
        beside itself where `costs`.
        """
        attack, attacked = self.attack, self.attacked
        limits = [
            (not attacked.failures, f"the client failed: {attacked.failures[:3]}"),
            (bool(attacked.calls_s and attacked.connects_s), "the client did nothing"),
            (
                attacked.connect_p99_s <= MAX_CONNECT_P99_S * slack,
                f"the p99 of its connects is {attacked.connect_p99_s:.2f} s",
            ),
            (
                self.growth_bytes <= attack.allowed_bytes + MAX_GROWTH_BYTES,
                f"the node grew by {self.growth_bytes / MIB:.0f} MiB",
            ),
            (
                self.gone_s is not None and self.gone_s <= attack.gone_s + GONE_SLACK_S * slack,
                f"they were gone after {self.gone_s and round(self.gone_s, 1)} s",
            ),
        ]
        if costs:
            wanted = attack.count * max(attack.flow_s, 1.0)
            limits += [
                (self.made >= MIN_SHARE_MADE * wanted, f"only {self.made} were made: the machine is busy"),
                (self.cpu_ratio <= MAX_CPU_RATIO, f"its CPU per call grew {self.cpu_ratio:.2f} times"),
                (self.p99_ratio <= MAX_P99_RATIO, f"its p99 grew {self.p99_ratio:.2f} times"),
            ]
        return [f"{attack.name}: {text}" for holds, text in limits if not holds]


class Abuse:
    """A node, its client and its attackers, until it is closed."""

    def __init__(self, form: Form) -> None:
        self._form = form
        cores = sorted(os.sched_getaffinity(0)) if form.is_judged_by_costs else []
        one, other = (cores[:1], cores[1:2]) if len(cores) > 1 else ((), ())
        layout = fixed_layout() if form.is_judged_by_costs else ()
        worker = functools.partial(Worker, layout=layout)
        with contextlib.ExitStack() as stack:
            node_config = json.dumps(dict(form.config))
            self._node = stack.enter_context(worker("benchmarks.abuse_ends", "victim", node_config, cores=one))
            place = self._node.answer()["place"]
            self._client = stack.enter_context(worker("benchmarks.abuse_ends", "client", place, cores=one))
            manner = "yielding" if form.is_judged_by_costs else "nice"
            self._attackers = stack.enter_context(worker("benchmarks.abuse_attacks", place, manner, cores=other))
            self._client.answer()
            self._attackers.answer()
            self.close = stack.pop_all().close

    def play(self, attack: Attack) -> Outcome:
        """Let the client be alone, attack, let it be alone again."""
        self._client.ask("next")
        alone, share_before = self._alone()
        before = self._node.ask("begin")
        descriptors_before = self._node.count_descriptors()
        if attack.descriptors is not None:
            self._node.ask(f"descriptors {descriptors_before + attack.descriptors}")
        began_at = time.monotonic()
        done = self._attackers.ask(f"{attack.name} {attack.count} {attack.flow_s or 2 * attack.gone_s}")
        done_at = time.monotonic()
        felt_of_flow = self._felt() if attack.flow_s else None
        self._node.ask("look")  # once it answers, it has let in whoever stood at the door
        gone_s = self._wait_until_gone(descriptors_before, done_at, 2 * (attack.gone_s + GONE_SLACK_S))
        attacked = felt_of_flow or self._felt()
        after = self._node.ask("look")
        took_s = time.monotonic() - began_at
        self._attackers.ask("leave")
        if attack.descriptors is not None:
            self._node.ask(f"descriptors {DESCRIPTORS}")
        self._wait_until_gone(descriptors_before, time.monotonic(), GONE_SLACK_S)
        self._client.ask("next")
        alone_after, share_after = self._alone()
        return Outcome(
            attack=attack,
            made=done["made"],
            refused=done["refused"],
            alone=alone + alone_after,
            attacked=attacked,
            node_share_alone=(share_before + share_after) / 2,
            node_share_attacked=(after["cpu_s"] - before["cpu_s"]) / took_s,
            growth_bytes=after["peak_bytes"] - before["rss_bytes"],
            gone_s=gone_s,
        )

    def _felt(self) -> Felt:
        """What the client has seen since it was asked last; where that is too short for a call and a connect, a little
        longer.
        """
        felt, until = Felt(), time.monotonic() + LONGER_S
        while True:
            felt += Felt(**self._client.ask("next"))
            if (felt.calls_s and felt.connects_s) or time.monotonic() > until:
                return felt
            time.sleep(LOOK_EVERY_S)

    def _alone(self) -> tuple[Felt, float]:
        """What the client feels without anybody, and what share of a core the node takes for it."""
        cpu_s, began_at = self._node.ask("look")["cpu_s"], time.monotonic()
        time.sleep(self._form.alone_s)
        share = (self._node.ask("look")["cpu_s"] - cpu_s) / (time.monotonic() - began_at)
        return self._felt(), share

    def _wait_until_gone(self, descriptors: int, since: float, within_s: float) -> float | None:
        """Seconds from `since` until the node has no more open than before; None when it takes longer."""
        while True:
            count = self._node.count_descriptors()
            passed_s = time.monotonic() - since
            if count <= descriptors + OWN_DESCRIPTORS:
                return passed_s
            if passed_s > within_s:
                return None
            time.sleep(LOOK_EVERY_S)


class Worker:
    """A process that answers a line of JSON for each line that it is asked; bound to these cores, if there are any.

    `layout` is what its command begins with.
    """

    def __init__(self, module: str, *args: str, cores: Collection[int] = (), layout: Sequence[str] = ()) -> None:
        command = [*layout, sys.executable, "-m", module, *args]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if cores:
            os.sched_setaffinity(self._process.pid, cores)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()  # it ends then
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def count_descriptors(self) -> int:
        """That it has open. Counted from here: for the node it would be milliseconds in which nobody is served."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def ask(self, line: str) -> dict[str, Any]:
        """What it says to this."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended: its last words are above")
        return json.loads(line)


def print_table(outcomes: Sequence[Outcome]) -> None:
    """A row for each attack, as Markdown."""
    print(
        "| attack | done | client CPU us/call | x alone | p50 ms | x alone | p99 ms | x alone | connect p99 ms "
        "| node CPU | grew MiB | gone s |"
    )
    print("| --- |" + " ---: |" * 11)
    for seen in outcomes:
        cells = (
            seen.attack.name.replace("_", " "),
            f"{seen.made:,}",
            f"{seen.attacked.call_cpu_us:.0f}",
            f"{seen.cpu_ratio:.2f}",
            f"{seen.attacked.p50_s * 1000:.1f}",
            f"{seen.attacked.p50_s / max(seen.alone.p50_s, 1e-9):.2f}",
            f"{seen.attacked.p99_s * 1000:.1f}",
            f"{seen.p99_ratio:.2f}",
            f"{seen.attacked.connect_p99_s * 1000:.1f}",
            f"{seen.node_share_attacked:.0%} ({seen.node_share_alone:.0%})",
            f"{seen.growth_bytes / MIB:.1f}",
            "no" if seen.gone_s is None else f"{seen.gone_s:.1f}",
        )
        print(f"| {' | '.join(cells)} |")


def _p99(samples: list[float]) -> float:
    return quantiles(samples, n=100)[98] if len(samples) > 1 else sum(samples)


def main() -> int:
    """The command; its exit status is 1 when a limit was missed."""
    parser = argparse.ArgumentParser(description="A node under abuse, and what an honest client feels of it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which attacks: {', '.join(FULL.attacks())}")
    parser.add_argument("--short", action="store_true", help="a fifth of each, against a node of little patience")
    parser.add_argument("--json", action="store_true", help="what was seen as JSON, not as a table")
    options = parser.parse_args()
    form = SHORT if options.short else FULL
    attacks = form.attacks()
    if unknown := set(options.names) - attacks.keys():
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    with contextlib.closing(Abuse(form)) as abuse:
        outcomes = [abuse.play(attacks[name]) for name in options.names or attacks]
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        print_table(outcomes)
    misses = [miss for outcome in outcomes for miss in outcome.misses()]
    for miss in misses:
        print(f"MISSED {miss}", file=sys.stderr)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())

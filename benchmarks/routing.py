"""What the routing table costs, against its limits: a contact offered, and the twenty closest to a key.

    python -m benchmarks.routing [--rounds 7] [--json]

A round offers 1,000 contacts with random ids to an empty table, then asks it for the 20 closest to random keys. Times
are CPU time, and of all rounds the median counts. Every answer is compared with sorting all contacts of the table.
Hosts are public ones, each in a /16 of its own, so that every limit of place is asked about and none is met.

The exit status is 1 when a limit is missed: a busy machine makes times worse, and never an answer.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from dht.config import RoutingConfig
from dht.contact import Contact
from dht.keyspace import KEY_SIZE_BYTES
from dht.routing import RoutingTable
from synapse_p2p.trust import TrustConfig

CONTACTS = 1000
QUERIES = 10_000
COUNT = 20
MAX_INSERT_US = 10.0
MAX_CLOSEST_US = 12.0

_TRUST = TrustConfig(loopback=False, private=False)


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one contact offered and of one query, in microseconds of CPU; and of how many queries the answer was exact."""

    insert_us: float
    closest_us: float
    exact: int
    queries: int

    @property
    def is_within_limits(self) -> bool:
        """Whether all of them are met."""
        return self.insert_us <= MAX_INSERT_US and self.closest_us <= MAX_CLOSEST_US and self.exact == self.queries


def main() -> None:
    """Measure, print, and exit with 1 when a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description="What the routing table costs.")
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is measured (default 7)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    costs = measure(rounds=options.rounds, queries=QUERIES)
    if options.json:
        print(json.dumps({**asdict(costs), "python": platform.python_version()}))
    else:
        print(f"contact offered, of {CONTACTS:,}  {costs.insert_us:6.2f} us   limit {MAX_INSERT_US:g} us")
        print(f"{COUNT} closest to a key        {costs.closest_us:6.2f} us   limit {MAX_CLOSEST_US:g} us")
        print(f"exact answers            {costs.exact:,} of {costs.queries:,}   limit all")
    sys.exit(0 if costs.is_within_limits else 1)


def measure(*, rounds: int, queries: int, seed: int = 1) -> Costs:
    """The medians of some rounds, each with other ids; all of them together ask for `queries` keys at least."""
    rng = random.Random(seed)
    insert_us: list[float] = []
    closest_us: list[float] = []
    exact = asked = 0
    keys_per_round = -(-queries // rounds)
    for _ in range(rounds):
        contacts = [some_contact(number, rng) for number in range(CONTACTS)]
        keys = [rng.randbytes(KEY_SIZE_BYTES) for _ in range(keys_per_round)]
        table = RoutingTable(rng.randbytes(KEY_SIZE_BYTES), RoutingConfig(), _TRUST)
        answers: list[list[Contact]] = []
        insert_us.append(cpu_us(lambda: offer(table, contacts)) / CONTACTS)  # noqa: B023 - called at once
        closest_us.append(cpu_us(lambda: ask(table, keys, answers)) / keys_per_round)  # noqa: B023 - called at once
        held = list(table)
        exact += sum(answer == brute_force(held, key) for key, answer in zip(keys, answers, strict=True))
        asked += keys_per_round
    return Costs(median(insert_us), median(closest_us), exact, asked)


def some_contact(number: int, rng: random.Random) -> Contact:
    """A random id, in a /16 of its own."""
    return Contact(rng.randbytes(KEY_SIZE_BYTES), (f"{number % 90 + 20}.{number // 90}.{number % 250}.7:9000",))


def offer(table: RoutingTable, contacts: Sequence[Contact]) -> None:
    """All of them, one second after another."""
    for second, contact in enumerate(contacts):
        table.observe(contact, float(second))


def ask(table: RoutingTable, keys: Sequence[bytes], answers: list[list[Contact]]) -> None:
    """For each key, in this order."""
    for key in keys:
        answers.append(table.closest(key, COUNT))  # noqa: PERF401 - the append is part of every caller's cost


def brute_force(held: Sequence[Contact], key: bytes) -> list[Contact]:
    """What `closest` has to answer."""
    point = int.from_bytes(key, "big")
    return sorted(held, key=lambda contact: contact.point ^ point)[:COUNT]


def cpu_us(run: Callable[[], object]) -> float:
    """Microseconds of CPU that a function takes, without the collector's."""
    gc.collect()
    gc.disable()
    try:
        started_at = time.process_time()
        run()
        return (time.process_time() - started_at) * 1e6
    finally:
        gc.enable()


if __name__ == "__main__":
    main()

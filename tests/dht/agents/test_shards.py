"""What a storer keeps of a shard and says of it, against the plainest way to count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.index import capability_root, provider_prefix, shard_key
from dht.agents.shards import (
    RANK_BITS,
    ROOT_SHARD,
    Shard,
    ShardReport,
    believed_report,
    first_to_go,
    in_turns,
    median_report,
    rank_of,
    report_on,
    sampled,
)

CAP = 16
ROOT = capability_root(b"n" * 16, "code-review")


@dataclass(frozen=True)
class Record:
    owner: bytes
    rank: int
    depth: int = 0
    group: str | None = None


RANKS = st.integers(0, 2**RANK_BITS - 1) | st.integers(0, 2**58) | st.sampled_from([1 << 60, 1 << 61, 1 << 62, 1 << 63])
RECORDS = st.lists(
    st.tuples(RANKS, st.integers(0, 5), st.sampled_from(["a", "b", "c", None])),
    max_size=40,
    unique_by=lambda each: each[0],
).map(lambda items: [Record(b"%d" % rank, rank, depth, group) for rank, depth, group in items])
SHARDS = st.integers(0, 8).flatmap(lambda depth: st.integers(0, 2**depth - 1).map(lambda prefix: Shard(depth, prefix)))


def bits(record: Record) -> str:
    return format(record.rank, f"0{RANK_BITS}b")


def counted(records: list[Record], prefix: str, max_per_party: int) -> int:
    parties = Counter(record.group for record in records if bits(record).startswith(prefix))
    return sum(min(max_per_party, count) for count in parties.values())


def as_bits(shard: Shard) -> str:
    return format(shard.prefix, f"0{shard.depth}b") if shard.depth else ""


@given(st.binary(min_size=32, max_size=32), st.integers(0, RANK_BITS))
def test_a_rank_begins_with_the_prefixes_of_the_shards_that_a_provider_belongs_to(provider: bytes, depth: int):
    rank = rank_of(ROOT, provider)
    shard = Shard(depth, provider_prefix(ROOT, provider, depth))

    assert shard.holds(rank)
    assert not depth or not Shard(depth, shard.prefix ^ 1).holds(rank)


@given(SHARDS)
def test_shards_of_one_stem_are_kept_under_one_key_and_hold_the_same_zeros(shard: Shard):
    stem = shard.stem()

    assert shard_key(ROOT, shard.prefix, shard.depth) == shard_key(ROOT, stem.prefix, stem.depth)
    assert as_bits(shard).rstrip("0") == as_bits(stem)
    assert stem.deepened(shard.depth) == shard
    assert {half.parent() for half in shard.halves()} == {shard}
    assert shard.halves()[0].stem() == stem != shard.halves()[1].stem()


@given(RECORDS, SHARDS, st.booleans(), st.integers(1, 6))
def test_a_report_is_what_counting_by_hand_says(records, shard: Shard, is_full: bool, max_per_party: int):
    report = report_on(records, shard, is_full=is_full, cap=CAP, max_per_party=max_per_party)

    named = sorted(record.depth for record in records)
    stem = as_bits(shard.stem())
    depth = max(len(stem), named[(len(named) - 1) // 2]) if named else len(stem)
    zeros = {d: counted(records, stem.ljust(d, "0"), max_per_party) << d for d in range(depth, RANK_BITS + 1)}
    deeper = []
    for d in range(depth + 1, RANK_BITS + 1):
        if 4 * (zeros[d] >> d) < CAP:
            break
        deeper.append(zeros[d])
    count = counted(records, as_bits(shard), max_per_party)
    estimate = max([zeros[depth], *(deeper if is_full else [])])
    assert report == ShardReport(count, depth, is_full, min(estimate, 2**53))


@given(RECORDS.filter(bool))
def test_who_goes_first_is_of_the_largest_party_and_has_its_largest_rank(records: list[Record]):
    gone = first_to_go(records)

    sizes = Counter(record.group for record in records)
    rivals = [record for record in records if sizes[record.group] == max(sizes.values())]
    assert gone in rivals
    assert all(record.rank <= gone.rank for record in rivals)


@given(RECORDS, st.binary(max_size=8))
def test_a_sample_takes_one_of_each_party_before_a_second_of_any(records: list[Record], nonce: bytes):
    order = sampled(records, nonce)

    assert sorted(order, key=records.index) == records
    for place, record in enumerate(order):
        before = sum(each.group == record.group for each in order[:place])
        for party in {each.group for each in records}:
            seen = sum(each.group == party for each in order[:place])
            assert seen >= min(before, sum(each.group == party for each in records))
    assert order == sampled(list(reversed(records)), nonce)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), unique=True))
def test_those_of_one_party_stay_in_their_order_while_parties_take_turns(items: list[tuple[str, int]]):
    order = in_turns(items, lambda item: item[0])

    turns = [sum(party == each for each, _ in order[:place]) for place, (party, _) in enumerate(order)]
    assert turns == sorted(turns)
    for party in "abc":
        assert [each for each in order if each[0] == party] == [each for each in items if each[0] == party]


def test_every_provider_comes_first_equally_often():
    records = [Record(b"%032d" % number, 0, 0, f"{number}") for number in range(10)]

    firsts = Counter(sampled(records, b"%d" % nonce)[0].owner for nonce in range(5000))

    assert all(abs(firsts[record.owner] - 500) < 110 for record in records), "five standard deviations"


def test_the_median_of_reports_is_one_of_each_figure_and_what_more_than_half_say():
    said = [ShardReport(count, depth, is_full, estimate) for count, depth, is_full, estimate in (
        (5, 0, True, 10**9), (7, 2, False, 30), (6, 1, False, 28), (900, 64, True, 29),
    )]  # fmt: skip

    assert median_report(said) == ShardReport(6, 1, False, 29)
    assert median_report([*said[:2], said[3]]) == ShardReport(7, 2, True, 30)
    with pytest.raises(ValueError, match="nobody"):
        median_report([])
    assert ROOT_SHARD.stem() == ROOT_SHARD


def test_a_minority_that_proves_nothing_is_not_believed() -> None:
    lie = ShardReport(count=10**6, depth=40, is_full=True, estimate=10**9)
    truth = ShardReport(count=5, depth=0, is_full=False, estimate=5)
    assert believed_report([lie] * 2, answered=20, is_proved=False) is None
    assert believed_report([lie] * 10, answered=20, is_proved=False) is None
    # All hold records of which none was asked for.
    assert believed_report([truth] * 18 + [lie] * 2, answered=20, is_proved=False) == truth
    # Some who are new there hold nothing yet.
    assert believed_report([truth] * 3, answered=20, is_proved=True) == truth
    assert believed_report([], answered=20, is_proved=False) is None
    assert believed_report([truth], answered=0, is_proved=False) == truth  # what we hold ourselves

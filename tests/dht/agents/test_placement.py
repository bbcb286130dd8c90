"""Where providers keep their records: the rules one by one, and whole crowds that grow, collapse and lie."""

from __future__ import annotations

import random
from collections import Counter
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dht.agents.placement import Placed, Placement, ReadRoot, Write, depths_for, search_depth
from dht.agents.search import MAX_READS, Ended, Read, ShardSearch, Take, margin_of_fullest
from dht.agents.shards import Shard, ShardReport
from simulations.crowd import LEASE_S, Crowd
from simulations.statistics import chi_square_p, pearson

CAP = 1000


def report(count: int, depth: int = 0, *, is_full: bool = False, estimate: int | None = None) -> ShardReport:
    return ShardReport(count, depth, is_full, count << depth if estimate is None else estimate)


@given(st.floats(0, 1e15), st.integers(32, 1000))
def test_there_is_a_depth_for_every_crowd_and_it_is_searched_where_all_of_it_is(providers: float, cap: int):
    depths = depths_for(providers, cap)

    assert 1 <= len(depths) <= 2
    assert all(providers / 2**depth <= 0.8 * cap for depth in depths)
    assert all(providers / 2**depth > cap / 4 or depth == 0 for depth in depths)
    for error in (0.83, 1.0, 1.2):
        assert search_depth(providers, cap) in depths_for(error * providers, cap), "an estimate that is a fifth off"


def test_a_depth_that_is_not_full_is_kept_until_next_to_nobody_is_there():
    assert depths_for(950, CAP) == (1,)
    assert depths_for(950, CAP, {0: False}) == (0, 1)
    assert depths_for(950, CAP, {0: True}) == (1,)
    assert depths_for(600, CAP, {0: True, 1: True}) == (0, 1), "full of others: a party that crowds goes first"
    assert depths_for(400, CAP, {1: False}) == (0,)


def test_a_new_provider_reads_the_root_and_registers_there_while_that_holds_all():
    placement = Placement(CAP)

    assert placement.poll() == ReadRoot(all_storers=False)
    placement.on_root([report(300), report(310), report(0)])
    assert placement.poll() == Write(0)
    placement.on_written(0, [report(301)] * 20)

    assert placement.poll() == Placed((0,))


def test_a_new_provider_of_a_crowd_goes_where_the_estimate_says():
    placement = Placement(CAP)
    placement.on_root([report(780, 3, estimate=9000)] * 3)

    assert placement.poll() == Write(4)
    placement.on_written(4, [report(560, 4)] * 20)
    assert placement.poll() == Write(5)
    placement.on_written(5, [report(281, 5)] * 20)

    assert placement.poll() == Placed((4, 5))


def test_where_next_to_nobody_is_all_storers_of_the_root_are_asked_once():
    placement = Placement(CAP)
    placement.on_root([report(500, 9)] * 3)  # a lie, or of yesterday
    while isinstance(step := placement.poll(), Write):
        placement.on_written(step.depth, [report(1, step.depth)] * 20)

    assert step == ReadRoot(all_storers=True)
    placement.on_root([report(90, 0)] * 20)
    assert placement.poll() == Write(0)
    placement.on_written(0, [report(91)] * 20)
    assert placement.poll() == Placed((0,))


def test_a_depth_that_was_left_and_is_right_after_all_is_not_written_twice():
    placement = Placement(32)
    placement.on_root([report(20)] * 3)
    placement.on_written(0, [report(32, is_full=True, estimate=2000)] * 3)
    while isinstance(step := placement.poll(), Write):
        placement.on_written(step.depth, [report(1, step.depth)] * 3)
    assert step == ReadRoot(all_storers=True)
    placement.on_root([report(12)] * 20)

    assert placement.poll() == Placed((0,))


def test_a_provider_that_stays_at_a_depth_hears_of_those_who_left_it_from_the_next():
    placement = Placement(32)
    placement.on_root([report(24, 2)] * 3)
    for _ in range(4):
        while isinstance(step := placement.poll(), Write):
            # Half of the shard at depth 2 has left it while it was crowded; at depth 3 all are.
            placement.on_written(step.depth, [report({2: 11, 3: 12}.get(step.depth, 6), step.depth)] * 3)
        placement.renew()

    assert placement.depths == (2, 3)


def test_nobody_answers_and_the_record_is_tried_at_the_root():
    placement = Placement(CAP)
    placement.on_root([])
    assert placement.poll() == Write(0)
    placement.on_written(0, [])

    assert placement.poll() == Placed((0,))
    placement.renew()
    assert placement.poll() == Write(0)


@given(st.data())
def test_whatever_storers_say_a_publication_ends(data):
    said = st.lists(
        st.builds(ShardReport, st.integers(0, 2**62), st.integers(0, 64), st.booleans(), st.integers(0, 2**62)),
        max_size=3,
    )
    placement = Placement(CAP)
    for _ in range(2):
        steps = 0
        while not isinstance(step := placement.poll(), Placed):
            steps += 1
            assert steps < 200
            if isinstance(step, ReadRoot):
                placement.on_root(data.draw(said))
            else:
                placement.on_written(step.depth, data.draw(said))
        assert step.depths == placement.depths != ()
        placement.renew()


def grown(count: int, *, cap: int = 64, over_s: float = 1800, seed: int = 1, **traits) -> Crowd:
    crowd = Crowd(cap, seed=seed, storers=3, **traits)
    for _ in range(count):
        crowd.add()
        crowd.run_until(crowd.now + over_s / count)
    crowd.run_until(crowd.now + 2 * LEASE_S)
    return crowd


@pytest.mark.parametrize(
    ("cap", "count"), [(32, 20), (32, 100), (64, 50), pytest.param(64, 400, marks=pytest.mark.gates)]
)
def test_a_crowd_that_has_grown_is_found_whole_and_no_storer_has_more_than_its_cap(cap: int, count: int):
    crowd = grown(count, cap=cap)
    lookups_of_growth = crowd.renewal_lookups

    crowd.run_until(crowd.now + 2 * LEASE_S)
    found, end, _ = crowd.search()

    assert set(found) == set(crowd.providers)
    assert end.complete is (count <= cap)
    assert max(len(storer.held) for storer in crowd.all_storers()) <= cap
    assert fmean(crowd.lookups) <= 3
    assert crowd.renewal_lookups - lookups_of_growth <= count / 20, "of four renewals each"


def test_a_crowd_that_collapses_is_found_again_within_two_leases():
    crowd = grown(400)
    alive = crowd.rng.sample(list(crowd.providers.values()), 20)
    for provider in list(crowd.providers.values()):
        if provider not in alive:
            crowd.kill(provider)

    crowd.run_until(crowd.now + 2 * LEASE_S)
    found, end, _ = crowd.search()

    assert set(found) == {provider.id for provider in alive}
    assert end.complete


@pytest.mark.parametrize(("lying", "wrong"), [(0.1, 0.0), pytest.param(0.0, 0.1, marks=pytest.mark.gates)])
def test_lies_about_counts_and_depths_leave_a_search_for_five_full(lying: float, wrong: float):
    crowd = Crowd(64, seed=3, storers=10, lying=lying)
    for _ in range(200):
        crowd.add(wrong_depth=crowd.rng.choice((0, 40)) if crowd.rng.random() < wrong else None)
        crowd.run_until(crowd.now + 9)
    crowd.run_until(crowd.now + 2 * LEASE_S)

    searches = [crowd.search(limit=5) for _ in range(50)]

    assert all(len(found) == 5 for found, _, _ in searches)
    assert fmean(len(search.reports) for _, _, search in searches) < 5


def test_a_flood_from_three_parties_neither_hides_the_others_nor_chases_them_away():
    crowd = Crowd(64, seed=7, storers=3)
    for number in range(400):
        crowd.add(group=None if number % 10 == 0 else f"flood {number % 3}")
        crowd.run_until(crowd.now + 4.5)
    crowd.run_until(crowd.now + 2 * LEASE_S)
    honest = {provider.id for provider in crowd.providers.values() if not provider.group.startswith("flood")}

    found, _, _ = crowd.search()
    samples = [crowd.search(limit=30)[0] for _ in range(20)]

    assert len(honest & set(found)) >= 0.95 * len(honest)
    assert fmean(len(honest & set(sample)) for sample in samples) >= 4


class CrowdModel(RuleBasedStateMachine):
    """A crowd that comes, goes and lies as it likes, against the plain list of who is there."""

    def __init__(self) -> None:
        super().__init__()
        self.crowd = Crowd(32, seed=2, storers=3)
        self.quiet_since = 0.0  # when anybody last came, went or lied

    @rule(count=st.integers(1, 25))
    def come(self, count: int) -> None:
        for _ in range(count):
            self.crowd.add()
            self.crowd.run_until(self.crowd.now + 5)
        self.quiet_since = self.crowd.now

    @rule(count=st.integers(1, 60))
    def go(self, count: int) -> None:
        there = list(self.crowd.providers.values())
        for provider in self.crowd.rng.sample(there, min(count, len(there))):
            self.crowd.kill(provider)
        self.quiet_since = self.crowd.now

    @rule(count=st.integers(1, 4), depth=st.sampled_from([0, 3, 40]))
    def lie(self, count: int, depth: int) -> None:
        for _ in range(count):
            self.crowd.add(wrong_depth=depth)
        self.quiet_since = self.crowd.now

    @rule(minutes=st.integers(1, 20))
    def pass_time(self, minutes: int) -> None:
        self.crowd.run_until(self.crowd.now + 60 * minutes)

    @rule(limit=st.integers(1, 8))
    def look_for_some(self, limit: int) -> None:
        found, end, _ = self.crowd.search(limit=limit)
        assert len(found) <= limit
        assert len(set(found)) == len(found)
        assert len(found) == limit or end.complete or end.reason

    @rule()
    @precondition(lambda self: self.crowd.now - self.quiet_since >= 2 * LEASE_S)
    def find_all_who_tell_the_truth(self) -> None:
        found, _, search = self.crowd.search()
        there = {provider.id for provider in self.crowd.providers.values()}
        truthful = {p.id for p in self.crowd.providers.values() if p.wrong_depth is None}
        assert set(found) <= there
        if len(search.reports) < MAX_READS:
            assert truthful <= set(found)

    @invariant()
    def no_storer_has_more_than_its_cap(self) -> None:
        assert all(len(storer.held) <= 32 for storer in self.crowd.all_storers())
        for provider in self.crowd.providers.values():
            assert provider.wrong_depth is not None or 1 <= len(provider.placement.depths) <= 4


TestCrowdModel = CrowdModel.TestCase
TestCrowdModel.settings = settings(max_examples=8, stateful_step_count=12, deadline=None)


@pytest.mark.parametrize("count", [700, pytest.param(2100, marks=pytest.mark.gates)])
def test_a_sample_of_a_crowd_takes_every_part_of_it_equally_often(count: int):
    """50 groups by rank: of shards that are uneven, as those of random ranks are."""
    rng = random.Random(count)
    ranks = sorted(rng.getrandbits(64) for _ in range(count))
    group_of = {rank: place * 50 // count for place, rank in enumerate(ranks)}
    counts, reads = [0] * 50, 0
    held: dict[Shard, list[int]] = {}

    for _ in range(4000):
        search = ShardSearch(CAP, rng, limit=1, estimate=float(count))
        while not isinstance(step := search.poll(), Take):
            assert isinstance(step, Read)
            ranks_there = held.setdefault(step.shard, [rank for rank in ranks if step.shard.holds(rank)])
            depth = search_depth(count, CAP)
            search.on_read(step.shard, report(len(ranks_there), depth, estimate=count), is_whole=True)
        counts[group_of[rng.choice(held[step.shard])]] += 1
        reads += len(search.reports)

    sizes = Counter(group_of.values())
    expected = [4000 * sizes[group] / count for group in range(50)]
    assert chi_square_p(pearson(counts, expected), 49) > 0.001
    assert reads / 4000 <= 1.1


def test_a_full_key_is_not_searched_to_the_bottom():
    """The all-zero shards of every depth are under the root's key, which is full because of the uppermost."""
    search = ShardSearch(32, random.Random(1), estimate=40.0)
    taken = 0
    while not isinstance(step := search.poll(), Ended):
        if isinstance(step, Take):
            search.on_taken(taken := taken + 1)
            continue
        held = 20 >> (step.shard.depth - 1)
        search.on_read(step.shard, report(held, 1, is_full=step.shard.prefix == 0), is_whole=True)

    assert {Shard(1, 0), Shard(1, 1)} <= search.reports.keys()
    assert max(shard.depth for shard in search.reports) <= 3


@pytest.mark.parametrize("limit", [16, None])
def test_a_lie_at_a_deep_shard_is_found_out_by_its_neighbours_and_everybody_is_found_higher_up(limit: int | None):
    """The one read that is a lie is the first; 50 providers are where they belong, in the halves of the root."""
    search = ShardSearch(64, random.Random(1), limit=limit, estimate=1e9)
    found, reads = 0, 0
    while not isinstance(step := search.poll(), Ended):
        if isinstance(step, Take):
            found += 25 if step.shard.depth == 1 else 0
            search.on_taken(found)
            continue
        reads += 1
        said = report(10**6, 40, is_full=True) if reads == 1 else report(25 if step.shard.depth == 1 else 0, 1)
        search.on_read(step.shard, said, is_whole=True)

    assert found >= (limit or 50)
    assert reads <= 12


def test_what_was_read_and_is_no_sample_is_taken_before_more_is_read():
    rejected = 0
    for seed in range(40):
        search = ShardSearch(32, random.Random(seed), limit=30, estimate=40.0)
        found, last_read = 0, Shard()
        while not isinstance(step := search.poll(), Ended):
            if isinstance(step, Take):
                found += 20
                search.on_taken(found)
                rejected += step.shard != last_read
            else:
                last_read = step.shard
                # Of one half most records were brought by others, and are counted for little; the other is full.
                said = report(2, 1) if step.shard == Shard(1, 1) else report(20, 1, is_full=True)
                search.on_read(step.shard, said, is_whole=True)
        assert search.reports.keys() == {Shard(1, 0), Shard(1, 1)}

    assert rejected > 5, "or nothing was shown"


@pytest.mark.parametrize("mean", [100, 350])
def test_one_shard_of_a_hundred_is_fuller_than_the_fullest_is_taken_to_be(mean: int):
    rng = random.Random(mean)
    crowds = [Counter(rng.choices(range(16), k=16 * mean)) for _ in range(200)]

    fuller = sum(size > mean * (1 + margin_of_fullest(mean)) for crowd in crowds for size in crowd.values())

    assert 0.002 < fuller / (200 * 16) < 0.02


def test_one_who_learns_how_many_there_are_as_it_searches_draws_every_provider_equally_often():
    """Were the shard that is judged a part of what it is judged by, small ones would be drawn 3 % too often."""
    counts, drawn = [349, 376, 326, 349], [0] * 4
    rng = random.Random(2)
    estimate, heard_count, reads = None, 0, 0

    for _ in range(20_000):
        search = ShardSearch(CAP, rng, limit=1, estimate=estimate, heard_count=min(heard_count, 16))
        while not isinstance(step := search.poll(), Take):
            assert isinstance(step, Read)
            count = counts[step.shard.prefix] if step.shard.depth else 980
            search.on_read(step.shard, report(count, 2, estimate=1400), is_whole=True)
        drawn[step.shard.prefix] += 1
        estimate, heard_count = search.estimate, search.heard_count
        reads += len(search.reports)

    statistic = pearson(drawn, [20_000 * count / sum(counts) for count in counts])
    assert chi_square_p(statistic, 3) > 0.001
    assert reads / 20_000 <= 1.1

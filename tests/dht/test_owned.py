from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dht.config import RecordConfig
from dht.keyspace import content_key, mutable_key
from dht.owned import MutableValue, Owned, OwnedRecords
from dht.reading import RecordReader
from dht.records import LAST_SEQ, Gone, Verdicts
from dht.values import MutableRecord
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import Identity

ME = Identity.from_seed(b"m" * 32)
NETWORK = bytes(range(16))
UNIX_MS = 1_800_000_000_000
DAY_S = 86_400.0
READER = RecordReader(NETWORK, RecordConfig(), Verdicts())


def owned_records(config: RecordConfig | None = None) -> OwnedRecords:
    return OwnedRecords(ME, NETWORK, config or RecordConfig(), renew_fraction=0.5)


def test_a_value_is_signed_for_its_time_and_renewed_at_half_of_it():
    mine = owned_records()

    owned = mine.put(b"value", 100.0, UNIX_MS, ttl_s=60.0)

    record = READER.read(owned.record, UNIX_MS)
    assert (owned.key, record.value, record.expires_ms) == (content_key(b"value"), b"value", UNIX_MS + 60_000)
    assert mine.due(129.9) == []
    assert mine.due(130.0) == mine.due(120.0, ahead_s=10.0) == [owned]


def test_a_renewal_lives_on_and_has_the_next_number():
    mine = owned_records()
    first = mine.put_mutable(b"v", 0.0, UNIX_MS, salt=b"s", ttl_s=60.0)

    second = mine.renew(first.key, 30.0, UNIX_MS - 5000)

    record = READER.read(second.record, UNIX_MS)
    assert (record.value, record.seq) == (b"v", first.seq + 1), "the clock went back, and numbers still grow"
    assert (second.replaced_seq, second.renew_at) == (first.seq, 60.0)


def test_who_lost_its_state_jumps_past_what_storers_hold():
    mine = owned_records()

    owned = mine.put_mutable(b"v", 0.0, UNIX_MS, last_seq=UNIX_MS + 77)

    assert owned.seq == UNIX_MS + 78


def test_a_deleted_value_is_a_tombstone_for_the_longest_time_and_then_forgotten():
    mine = owned_records()
    live = mine.put_mutable(b"v", 0.0, UNIX_MS)

    owned = mine.delete(10.0, UNIX_MS)

    record = READER.read(owned.record, UNIX_MS)
    assert (record.gone, record.seq) == (Gone.NOW, live.seq + 1)
    assert record.expires_ms == UNIX_MS + 2 * DAY_S * 1000
    assert mine.due(10.0 + 2 * DAY_S - 1) == [] and len(mine) == 1
    assert mine.due(10.0 + 2 * DAY_S) == [] and len(mine) == 0


def test_a_revoked_key_is_put_again_as_it_is_and_takes_nothing_new():
    mine = owned_records()
    mine.put_mutable(b"v", 0.0, UNIX_MS)
    owned = mine.revoke(0.0, UNIX_MS)

    again = mine.renew(owned.key, DAY_S, UNIX_MS + 86_400_000)

    assert again.record == owned.record
    assert (READER.read(owned.record, UNIX_MS).gone, owned.seq) == (Gone.FINAL, LAST_SEQ)
    for refused in (lambda: mine.put_mutable(b"w", 0.0, UNIX_MS), lambda: mine.delete(0.0, UNIX_MS)):
        with pytest.raises(ConfigError, match="revoked"):
            refused()


def newer(seq: int, value: bytes = b"of another", gone: Gone | None = None) -> tuple[MutableRecord, bytes]:
    value = b"" if gone else value
    record = MutableRecord(ME.public_key, b"", seq, UNIX_MS, UNIX_MS + 60_000, NETWORK, value, gone)
    return record, record.seal(ME)


def test_a_newer_version_by_another_of_our_processes_is_the_one_that_is_renewed():
    mine = owned_records()
    ours = mine.put_mutable(b"ours", 0.0, UNIX_MS)
    record, data = newer(ours.seq + 5)

    is_news = mine.on_newer(record, data, 10.0, UNIX_MS)
    renewed = mine.renew(ours.key, 40.0, UNIX_MS)

    assert is_news
    assert (renewed.value, renewed.seq, renewed.replaced_seq) == (b"of another", ours.seq + 6, ours.seq + 5)
    mine.check_invariants()


def test_an_older_version_and_one_of_no_record_of_ours_are_no_news():
    mine = owned_records()
    record, data = newer(5)

    before = mine.on_newer(record, data, 0.0, UNIX_MS)
    mine.put_mutable(b"ours", 0.0, UNIX_MS)

    assert (before, mine.on_newer(record, data, 0.0, UNIX_MS)) == (False, False)


def test_what_is_due_comes_in_the_order_of_keys():
    mine = owned_records()
    for number in range(50):
        mine.put(b"%d" % number, 0.0, UNIX_MS, ttl_s=60.0 + number)

    due = [owned.key for owned in mine.due(45.0)]

    assert due == sorted(due) and len(due) == 31


def test_a_put_that_too_few_kept_is_tried_sooner():
    mine = owned_records()
    owned = mine.put(b"v", 0.0, UNIX_MS)

    mine.retry_at(owned.key, 5.0)
    mine.retry_at(owned.key, 7.0)
    mine.retry_at(bytes(32), 1.0)

    assert [record.key for record in mine.due(5.0)] == [owned.key]


@pytest.mark.parametrize("ttl_s", [0, -1.0, float("nan"), 2 * DAY_S + 1])
def test_a_time_that_no_storer_grants_is_refused_at_home(ttl_s: float):
    with pytest.raises(ConfigError, match="ttl_s"):
        owned_records().put(b"v", 0.0, UNIX_MS, ttl_s=ttl_s)


def test_what_is_looked_after_is_bounded_and_the_error_names_the_setting():
    by_count = owned_records(RecordConfig(max_owned_records=1))
    by_bytes = owned_records(RecordConfig(max_owned_bytes=10))
    by_count.put(b"a", 0.0, UNIX_MS)
    by_bytes.put(b"1234567890", 0.0, UNIX_MS)

    with pytest.raises(ConfigError, match="max_owned_records"):
        by_count.put(b"b", 0.0, UNIX_MS)
    with pytest.raises(ConfigError, match="max_owned_bytes"):
        by_bytes.put(b"b", 0.0, UNIX_MS)
    by_count.put(b"a", 0.0, UNIX_MS)


def test_a_value_found_says_whether_it_was_deleted_and_for_how_long():
    live, _ = newer(1)
    deleted, _ = newer(2, gone=Gone.NOW)
    final = MutableRecord.final(ME.public_key, b"", issued_ms=1, network_id=NETWORK)

    assert MutableValue.of(live) == MutableValue(mutable_key(ME.public_key, b""), b"of another", 1)
    assert (MutableValue.of(deleted).value, MutableValue.of(deleted).is_final) == (None, False)
    assert (MutableValue.of(final).value, MutableValue.of(final).is_final) == (None, True)


class OwnedModel(RuleBasedStateMachine):
    """Whatever an owner does, its numbers grow, and storers would take each version."""

    def __init__(self) -> None:
        super().__init__()
        self.mine = owned_records(RecordConfig(max_owned_records=5, max_owned_bytes=40))
        self.newest: dict[bytes, int] = {}
        self.now = 0.0
        self.skew_ms = 0

    @property
    def unix_ms(self) -> int:
        return UNIX_MS + round(self.now * 1000) + self.skew_ms

    def signed(self, owned: Owned) -> None:
        record = READER.read(owned.record, self.unix_ms)
        assert (record.key, record.seq, record.gone) == (owned.key, owned.seq, owned.gone)
        if owned.gone is not Gone.FINAL and isinstance(record, MutableRecord):
            assert owned.seq > self.newest.get(owned.key, 0)
        self.newest[owned.key] = owned.seq

    @rule(value=st.binary(max_size=20), salt=st.sampled_from([b"", b"a", b"b"]), is_mutable=st.booleans())
    def put(self, value: bytes, salt: bytes, is_mutable: bool) -> None:
        try:
            if is_mutable:
                self.signed(self.mine.put_mutable(value, self.now, self.unix_ms, salt=salt))
            else:
                self.signed(self.mine.put(value, self.now, self.unix_ms))
        except ConfigError:
            return

    @rule(salt=st.sampled_from([b"", b"a"]), is_final=st.booleans())
    def delete(self, salt: bytes, is_final: bool) -> None:
        try:
            end = self.mine.revoke if is_final else self.mine.delete
            self.signed(end(self.now, self.unix_ms, salt=salt))
        except ConfigError:
            return

    @rule()
    def renew(self) -> None:
        for owned in self.mine.due(self.now):
            renewed = self.mine.renew(owned.key, self.now, self.unix_ms)
            self.signed(renewed)
            assert renewed.value == owned.value

    @rule(seconds=st.integers(0, 100_000), skew_ms=st.integers(-10_000, 10_000))
    def time_passes(self, seconds: int, skew_ms: int) -> None:
        before = set(self.mine.due(self.now + seconds))
        self.now += seconds
        self.skew_ms = skew_ms
        assert set(self.mine.due(self.now)) == before

    @invariant()
    def keeps_its_promises(self) -> None:
        self.mine.check_invariants()


TestOwnedModel = OwnedModel.TestCase
TestOwnedModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

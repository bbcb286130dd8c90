from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dht.config import RecordConfig
from dht.quotas import OWN_GROUP, Quotas
from dht.records import Refusal
from dht.stored_record import RECORD_OVERHEAD_BYTES, StoredRecord

SMALL = RecordConfig(
    max_records=6, max_records_per_owner=3, max_records_per_group=4, max_bytes=7 * RECORD_OVERHEAD_BYTES,
    max_bytes_per_owner=3 * RECORD_OVERHEAD_BYTES, max_bytes_per_group=5 * RECORD_OVERHEAD_BYTES,
)  # fmt: skip
RECORDS = st.builds(
    StoredRecord,
    record=st.integers(0, 1500).map(bytes),
    owner=st.sampled_from([b"a", b"b", b"c"]),
    seq=st.just(1),
    expires_at=st.just(1.0),
    group=st.sampled_from([None, "g", "h", OWN_GROUP]),
)


@given(st.lists(st.tuples(st.integers(0, 9), RECORDS), max_size=40))
def test_what_is_taken_adds_up_and_no_cap_is_passed(steps: list[tuple[int, StoredRecord]]):
    quotas = Quotas(SMALL)
    held: dict[int, StoredRecord] = {}

    for place, new in steps:
        old = held.get(place)
        if quotas.refusal_of(new, old) is None:
            if old is not None:
                quotas.give_back(old)
            quotas.take(new)
            held[place] = new
        quotas.check_invariants(held.values())


@given(st.lists(RECORDS, max_size=20))
def test_a_version_no_larger_than_the_last_always_has_room(records: list[StoredRecord]):
    quotas = Quotas(SMALL)

    for record in records:
        if quotas.refusal_of(record, None) is None:
            quotas.take(record)
            assert quotas.refusal_of(record, record) is None


def test_no_group_takes_the_room_of_another():
    quotas = Quotas(SMALL)
    refusals = []
    for number in range(6):
        record = StoredRecord(b"", b"%d" % number, 1, 1.0, group="g")
        refusals.append(quotas.refusal_of(record, None))
        if refusals[-1] is None:
            quotas.take(record)

    assert refusals == [None] * 4 + [Refusal.GROUP_QUOTA] * 2
    assert quotas.refusal_of(StoredRecord(b"", b"x", 1, 1.0, group="h"), None) is None

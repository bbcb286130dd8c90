"""What a node answers about values, tombstones and offers: over the real encoding, to an authenticated caller."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dht.agents.index import capability_root
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.config import DHTConfig, LookupConfig, RecordConfig
from dht.contact import Contact
from dht.keyspace import content_key
from dht.messages import FindValueAnswer, Offer, Store, StoreAnswer
from dht.node import DHTNode
from dht.records import LABELS, MAX_INT, Gone, RecordKind, Refusal
from dht.responder import Responder
from dht.sqlite_store import SqliteRecordStore
from dht.store import MemoryRecordStore
from dht.stored_record import ANY_OWNER, StoredRecord
from dht.values import ImmutableRecord, MutableRecord
from simulations.network import EPOCH_S, ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack
from synapse_p2p.trust import TrustConfig

OWNER = Identity.from_seed(b"o" * 32)
STRANGER = Identity.from_seed(b"s" * 32)
NOBODY_EXEMPT = ServerConfig(pool=PoolConfig(trust=TrustConfig(loopback=False, private=False)))
NETWORK = network_id_of("")
NOW = round(EPOCH_S * 1000)
DAY_MS = 86_400_000
SKILL = "code-review"


class Pair:
    """A node that answers, and a host without an address that asks it; nobody is exempt from limits of place."""

    def __init__(
        self, config: DHTConfig | None = None, *, path: Path | None = None, server: ServerConfig = NOBODY_EXEMPT
    ) -> None:
        self.network = VirtualNetwork(
            asyncio.get_running_loop(), random.Random(1), ConstantLatency(), Digest(), config=server
        )
        self.host = self.network.host()
        records = (config or DHTConfig()).records
        self.store = MemoryRecordStore(records)
        if path is not None:
            self.store = SqliteRecordStore(path, records, self.host.runtime)
        self.node = DHTNode(self.host, config=config, store=self.store)
        self.caller = self.network.client()

    async def ask(self, endpoint: str, request: dict[str, Any], *, caller: VirtualHost | None = None) -> Any:
        contact = Contact(self.host.id, self.host.advertised_addresses)
        return await (caller or self.caller).peers.call(contact, endpoint, request, timeout_s=5)

    async def put(self, record: bytes | None, **more: Any) -> StoreAnswer:
        answer = await self.ask("_dht.store", Store(record, **more).to_map())
        self.store.check_invariants()
        return StoreAnswer.from_map(answer)

    async def get(self, key: bytes, **more: Any) -> FindValueAnswer:
        return FindValueAnswer.from_map(await self.ask("_dht.find_value", {"key": key, **more}))


def immutable(value: bytes = b"value", identity: Identity = OWNER, **fields: Any) -> ImmutableRecord:
    common = {"public_key": identity.public_key, "issued_ms": NOW, "expires_ms": NOW + DAY_MS, "network_id": NETWORK}
    return ImmutableRecord(**{**common, "value": value, **fields})


def mutable(value: bytes = b"value", seq: int = 5, **fields: Any) -> MutableRecord:
    common = {"public_key": OWNER.public_key, "issued_ms": NOW, "expires_ms": NOW + DAY_MS, "network_id": NETWORK}
    return MutableRecord(**{**common, "salt": b"salt", "seq": seq, "value": value, **fields})


def agent(seq: int = 1, *, identity: Identity = OWNER, gone: Gone | None = None, life_s: float = 900) -> AgentRecord:
    return AgentRecord(
        public_key=identity.public_key,
        seq=seq,
        issued_ms=NOW,
        expires_ms=MAX_INT if gone is Gone.FINAL else NOW + round(life_s * 1000),
        network_id=NETWORK,
        addresses=() if gone else ("10.9.9.9:9000",),
        reach=Reach.DIRECT,
        name="Reviewer",
        role="reviewer",
        description="",
        capabilities=(CapabilityClaim(SKILL),),
        gone=gone,
    )


def signed(record: ImmutableRecord | MutableRecord, **changes: Any) -> bytes:
    """The record with other fields than it may have, well signed."""
    body = unpack(unpack(record.seal(OWNER), CONTROL_LIMITS)[1], CONTROL_LIMITS) | changes
    return pack([int(record.kind), pack(body), OWNER.sign(LABELS[record.kind], pack(body))])


def flipped(envelope: bytes) -> bytes:
    return envelope[:-1] + bytes([envelope[-1] ^ 1])


# What is kept


@pytest.mark.parametrize("record", [immutable(), immutable(b""), mutable(), mutable(bytes(16 * 1024))], ids=repr)
def test_a_value_is_kept_under_its_own_key_and_served_as_received(record: ImmutableRecord | MutableRecord):
    async def main() -> None:
        pair = Pair()
        data = record.seal(OWNER)

        answer = await pair.put(data)
        found = await pair.get(record.key)

        assert (answer.stored, answer.refusal) == (True, None)
        assert (found.records, found.count, found.full) == ((data,), 1, False)

    run(main())


def test_beside_a_value_that_is_its_own_proof_nobody_is_named():
    async def main() -> None:
        pair = Pair()
        pair.node.routing_table.observe(Contact(STRANGER.node_id, ("10.9.9.9:9000",)), pair.host.runtime.now())
        for record in (immutable(), mutable()):
            await pair.put(record.seal(OWNER))

        assert not (await pair.get(immutable().key)).contacts
        for goes_on in (mutable().key, content_key(b"nobody put this")):
            assert [contact.id for contact in (await pair.get(goes_on)).contacts] == [STRANGER.node_id]

    run(main())


BAD_PUTS: dict[str, tuple[Callable[[], bytes], Refusal]] = {
    "nothing": (lambda: b"", Refusal.MALFORMED),
    "two records in one": (lambda: mutable().seal(OWNER) * 2, Refusal.MALFORMED),
    "truncated": (lambda: mutable().seal(OWNER)[:-1], Refusal.MALFORMED),
    "unknown kind": (lambda: pack([77, b"", bytes(64)]), Refusal.UNKNOWN_KIND),
    "depth 33": (lambda: signed(mutable(), value=_nested(33)), Refusal.MALFORMED),
    "too many fields": (lambda: signed(mutable(b""), value=[0] * 9000), Refusal.MALFORMED),
    "one byte too many": (lambda: signed(immutable(), value=bytes(16 * 1024 + 1)), Refusal.TOO_LARGE),
    "one byte too many, mutable": (lambda: signed(mutable(), value=bytes(16 * 1024 + 1)), Refusal.TOO_LARGE),
    "salt too long": (lambda: signed(mutable(), salt=bytes(65)), Refusal.MALFORMED),
    "seq 0": (lambda: signed(mutable(), seq=0), Refusal.MALFORMED),
    "seq -1": (lambda: signed(mutable(), seq=-1), Refusal.MALFORMED),
    "seq 2^63": (lambda: signed(mutable(), seq=2**63), Refusal.MALFORMED),
    "seq 2^63 - 1": (lambda: signed(mutable(), seq=2**63 - 1), Refusal.MALFORMED),
    "life 0": (lambda: signed(mutable(), expires=NOW), Refusal.EXPIRED),
    "life negative": (lambda: signed(immutable(), expires=NOW - 1), Refusal.EXPIRED),
    "life of years": (lambda: signed(immutable(), expires=NOW + 1000 * DAY_MS), Refusal.LIFE_TOO_LONG),
    "life for ever": (lambda: signed(mutable(), expires=MAX_INT), Refusal.LIFE_TOO_LONG),
    "an hour ahead": (lambda: signed(mutable(), issued=NOW + 3_600_000), Refusal.FROM_THE_FUTURE),
    "another network": (lambda: signed(mutable(), network=bytes(16)), Refusal.WRONG_NETWORK),
    "signed by another": (lambda: signed(mutable(), key=STRANGER.public_key), Refusal.BAD_SIGNATURE),
    "unsigned value": (lambda: flipped(immutable().seal(OWNER)), Refusal.BAD_SIGNATURE),
}


def _nested(depth: int) -> Any:
    value: Any = b""
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("bad", BAD_PUTS)
def test_a_bad_put_is_refused_with_its_word_and_nothing_is_kept(bad: str):
    async def main() -> None:
        pair = Pair()
        make, word = BAD_PUTS[bad]

        answer = await pair.put(make())

        assert (answer.stored, answer.refusal, answer.newer) == (False, word, None)
        assert len(pair.store) == 0

    run(main())


def test_five_thousand_changed_records_are_not_kept():
    async def main() -> None:
        pair = Pair()
        rng = random.Random(5)
        good = [mutable().seal(OWNER), immutable().seal(OWNER), agent().seal(OWNER)]
        endpoint = pair.host.mounted("_dht.store")
        assert endpoint is not None
        context = CallContext(peer=STRANGER.node_id, address="10.0.0.9:1")
        for number in range(5000):
            data = bytearray(good[number % 3])
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)

            answer = endpoint({"record": bytes(data), "capability": SKILL}, context)

            assert not answer["stored"] and answer["refusal"] in set(Refusal)
        assert len(pair.store) == 0

    run(main())


SEQS: dict[str, tuple[MutableRecord, int | None, Refusal | None]] = {
    "the same bytes": (mutable(), None, None),
    "the same bytes, and another expected": (mutable(), 3, None),
    "the same seq with another value": (mutable(b"other"), None, Refusal.STALE),
    "a lower seq": (mutable(seq=4), None, Refusal.STALE),
    "a higher seq": (mutable(seq=6), None, None),
    "a higher seq, as expected": (mutable(seq=6), 5, None),
    "a higher seq, and another expected": (mutable(seq=7), 6, Refusal.SEQ_MISMATCH),
    "a higher seq, and none expected": (mutable(seq=7), 0, Refusal.SEQ_MISMATCH),
    "a lower seq, as expected": (mutable(seq=4), 5, Refusal.STALE),
}


@pytest.mark.parametrize("case", SEQS)
def test_a_version_is_taken_by_its_number_and_a_refusal_shows_the_one_held(case: str):
    async def main() -> None:
        pair = Pair()
        held = mutable().seal(OWNER)
        await pair.put(held)
        record, expected_seq, refusal = SEQS[case]

        answer = await pair.put(record.seal(OWNER), expected_seq=expected_seq)
        found = await pair.get(record.key)

        assert (answer.stored, answer.refusal) == (refusal is None, refusal)
        assert answer.newer == (held if refusal else None)
        assert found.records == ((record.seal(OWNER) if refusal is None else held),)

    run(main())


def test_the_caller_cannot_choose_the_key_of_a_value():
    async def main() -> None:
        pair = Pair()

        await pair.ask("_dht.store", {"record": mutable().seal(OWNER), "key": bytes(32), "peer": OWNER.node_id})
        await pair.ask("_dht.store", {"record": immutable().seal(OWNER), "capability": SKILL, "depth": 3})

        assert pair.store.held_keys() == [mutable().key, content_key(b"value")]

    run(main())


def test_one_value_is_kept_once_for_the_longest_time_that_anybody_signed():
    async def main() -> None:
        pair = Pair()
        short, long = (immutable(expires_ms=NOW + hours * 3_600_000) for hours in (1, 2))

        answers = [await pair.put(record.seal(OWNER)) for record in (short, long, short)]
        of_another = await pair.put(immutable(identity=STRANGER, expires_ms=NOW + 60_000).seal(STRANGER))

        assert [answer.stored for answer in answers] == [True, True, True]
        assert of_another.stored, "it is held already, for longer"
        assert (await pair.get(short.key)).records == (long.seal(OWNER),)

    run(main())


def test_a_value_far_from_us_is_not_close_and_costs_no_signature(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        pair = Pair(DHTConfig(lookup=LookupConfig(k=1)))
        key = mutable().key
        for number in (1, 2, 3):
            contact = Contact(key[:-1] + bytes([key[-1] ^ number]), (f"10.{number}.0.7:9000",))
            pair.node.routing_table.observe(contact, pair.host.runtime.now())
        monkeypatch.setattr("dht.records.verify", lambda *_: pytest.fail("a signature was checked"))

        answer = await pair.put(flipped(mutable().seal(OWNER)))

        assert answer.refusal == Refusal.NOT_CLOSE

    run(main())


def test_what_is_refused_for_its_number_or_for_room_and_what_is_held_costs_no_signature(
    monkeypatch: pytest.MonkeyPatch,
):
    async def main() -> None:
        pair = Pair(DHTConfig(records=RecordConfig(max_records_per_owner=1)))
        await pair.put(mutable().seal(OWNER))
        monkeypatch.setattr("dht.records.verify", lambda *_: pytest.fail("a signature was checked"))

        again = await pair.put(mutable().seal(OWNER))
        stale = await pair.put(flipped(mutable(seq=4).seal(OWNER)))
        full = await pair.put(flipped(immutable().seal(OWNER)))

        assert (again.stored, stale.refusal, full.refusal) == (True, Refusal.STALE, Refusal.OWNER_QUOTA)

    run(main())


def test_an_answer_leaves_after_the_store_was_flushed():
    async def main() -> list[str]:
        pair = Pair()
        done: list[str] = []
        put, flush = pair.store.put, pair.store.flush
        pair.store.put = lambda *args, **kwargs: done.append("put") or put(*args, **kwargs)
        pair.store.flush = lambda: done.append("flush") or flush()
        await pair.put(mutable().seal(OWNER))
        return done

    assert run(main()) == ["put", "flush"]


def test_what_was_acknowledged_is_in_the_file(tmp_path: Path):
    async def main() -> None:
        pair = Pair(path=tmp_path / "records.db")
        values = [mutable(salt=bytes([number])) for number in range(5)]
        answers = [await pair.put(value.seal(OWNER)) for value in values]
        pair.store.flush = lambda: None
        pair.store.close()

        later = SqliteRecordStore(tmp_path / "records.db", RecordConfig(), pair.host.runtime)

        assert all(answer.stored for answer in answers)
        assert later.held_keys() == [value.key for value in values]
        later.close()

    run(main())


def test_three_of_the_largest_values_do_not_burst_an_answer():
    async def main() -> None:
        pair = Pair(DHTConfig(records=RecordConfig(max_answer_bytes=1500, max_agent_record_bytes=1500)))
        record = mutable(bytes(16 * 1024)).seal(OWNER)
        await pair.put(record)

        found = await pair.get(mutable().key)

        assert found.records == (record,), "the first is sent in any case"

    run(main())


# Tombstones


def test_a_tombstone_takes_the_place_of_a_value_and_is_served():
    async def main() -> None:
        pair = Pair()
        await pair.put(mutable(seq=5).seal(OWNER))
        tombstone = mutable(b"", seq=6, gone=Gone.NOW).seal(OWNER)

        answer = await pair.put(tombstone)
        late_copy = await pair.put(mutable(seq=5).seal(OWNER))
        found = await pair.get(mutable().key)

        assert answer.stored
        assert (late_copy.refusal, late_copy.newer) == (Refusal.STALE, tombstone)
        assert (found.records, found.count) == ((tombstone,), 0)

    run(main())


def test_a_deleted_value_may_come_back_and_a_revoked_one_never():
    async def main() -> None:
        pair = Pair()
        final = MutableRecord.final(OWNER.public_key, b"salt", issued_ms=NOW, network_id=NETWORK).seal(OWNER)
        await pair.put(mutable(b"", seq=6, gone=Gone.NOW).seal(OWNER))

        back = await pair.put(mutable(seq=7).seal(OWNER))
        revoked = await pair.put(final)
        never = await pair.put(mutable(seq=2**63 - 2).seal(OWNER))

        assert (back.stored, revoked.stored) == (True, True)
        assert (never.refusal, never.newer) == (Refusal.STALE, final)

    run(main())


def test_a_final_tombstone_is_kept_as_long_as_somebody_brings_it_again():
    async def main() -> None:
        pair = Pair()
        final = MutableRecord.final(OWNER.public_key, b"salt", issued_ms=NOW, network_id=NETWORK).seal(OWNER)
        for _ in range(5):
            assert (await pair.put(final)).stored
            await asyncio.sleep(40 * 3600)

        assert (await pair.get(mutable().key)).records == (final,)
        await asyncio.sleep(49 * 3600)
        assert (await pair.get(mutable().key)).records == ()

    run(main())


def test_a_withdrawn_agent_is_not_counted_and_its_tombstone_comes_last():
    async def main() -> None:
        pair = Pair()
        others = [Identity.from_seed(bytes([number]) * 32) for number in range(5)]
        for identity in (OWNER, *others):
            await pair.put(agent(identity=identity).seal(identity), capability=SKILL)
        withdrawal = agent(2, gone=Gone.NOW).seal(OWNER)

        answer = await pair.put(withdrawal, capability=SKILL)
        root = capability_root(NETWORK, SKILL)
        found = [await pair.get(root, nonce=bytes([number]), limit=2) for number in range(8)]

        assert answer.stored
        assert {(answer.count, len(answer.records), answer.records[-1]) for answer in found} == {(5, 3, withdrawal)}

    run(main())


def test_a_withdrawn_agent_is_found_no_more_though_another_storer_missed_it():
    async def main() -> None:
        pair = Pair()
        await pair.put(agent(2, gone=Gone.NOW).seal(OWNER), capability=SKILL)
        other = pair.network.host()
        stale = DHTNode(other)
        contact = Contact(pair.host.id, pair.host.advertised_addresses)
        searcher = DHTNode(pair.network.host())
        for node in (stale, searcher):
            node.routing_table.observe(contact, 0.0)
        searcher.routing_table.observe(Contact(other.id, other.advertised_addresses), 0.0)
        old = agent(1).seal(OWNER)
        stale.store.put(capability_root(NETWORK, SKILL), StoredRecord(old, OWNER.node_id, 1, 900.0), 0.0)

        found = await searcher.find_providers(SKILL)

        assert found.records == ()

    run(main())


# Whose share


def test_records_are_charged_to_where_their_owner_was_seen_and_strangers_share_the_rest():
    async def main() -> None:
        pair = Pair()
        trust = TrustConfig(loopback=False, private=False)
        seen: list[Contact] = []
        responder = Responder(
            pair.host, pair.node.routing_table, pair.store, DHTConfig(), on_candidate=seen.append, trust=trust
        )
        known = Identity.from_seed(b"k" * 32)
        pair.node.routing_table.observe(Contact(known.node_id, ("192.0.2.77:9000",)), 0.0)
        by_owner = CallContext(peer=OWNER.node_id, address="127.0.3.9:1234")
        by_another = CallContext(peer=b"x" * 32, address="127.0.4.9:1234")

        def group_of(record: Any, identity: Identity, context: CallContext) -> str | None:
            responder.store({"record": record.seal(identity), "capability": SKILL}, context)
            key = record.key if not isinstance(record, AgentRecord) else capability_root(NETWORK, SKILL)
            held = pair.store.find(key, ANY_OWNER if record.kind is RecordKind.IMMUTABLE else record.owner)
            assert held is not None
            return held.group

        assert group_of(mutable(), OWNER, by_owner) == "127.0.3.0/24"
        assert group_of(immutable(), OWNER, by_another) is None
        assert group_of(immutable(b"k", known), known, by_another) == "192.0.2.0/24"
        assert group_of(agent(), OWNER, by_owner) is None, "it says that it is at 10.9.9.9"
        at_home = CallContext(peer=OWNER.node_id, address="10.9.9.9:1234")
        assert group_of(agent(2), OWNER, at_home) == "10.9.9.0/24"

    run(main())


def test_owners_on_one_exempt_machine_have_a_share_each():
    async def main() -> None:
        pair = Pair(server=ServerConfig())
        context = CallContext(peer=OWNER.node_id, address="127.0.0.1:1234")
        endpoint = pair.host.mounted("_dht.store")
        assert endpoint is not None

        endpoint({"record": mutable().seal(OWNER)}, context)

        held = pair.store.find(mutable().key, OWNER.node_id)
        assert held is not None and held.group == OWNER.node_id.hex()

    run(main())


# Offers


def test_offers_are_answered_with_what_is_missing_here():
    async def main() -> None:
        pair = Pair()
        await pair.put(mutable(seq=5).seal(OWNER))
        key = mutable().key
        offers = (
            Offer(RecordKind.MUTABLE, key, OWNER.node_id, 5),
            Offer(RecordKind.MUTABLE, key, OWNER.node_id, 6),
            Offer(RecordKind.MUTABLE, key, OWNER.node_id, 4),
            Offer(RecordKind.IMMUTABLE, bytes(32), OWNER.node_id, NOW),
            Offer(77, bytes(32), OWNER.node_id, 1),
        )

        alone = await pair.put(None, offers=offers)
        with_a_record = await pair.put(immutable().seal(OWNER), offers=offers)

        assert (alone.stored, alone.refusal, alone.wanted) == (False, None, (1, 3))
        assert (with_a_record.stored, with_a_record.wanted) == (True, (1, 3))

    run(main())


def test_what_is_offered_and_held_needs_no_copy_of_ours_for_a_while():
    async def main() -> None:
        pair = Pair()
        await pair.put(mutable().seal(OWNER))
        await asyncio.sleep(100)
        now = pair.host.runtime.now()
        before = len(pair.store.not_copied_since(now - 50, now))

        await pair.put(None, offers=(Offer(RecordKind.MUTABLE, mutable().key, OWNER.node_id, 5),))

        assert (before, pair.store.not_copied_since(now - 50, now)) == (1, [])

    run(main())


def test_what_is_offered_far_from_us_is_not_wanted():
    async def main() -> None:
        pair = Pair(DHTConfig(lookup=LookupConfig(k=1)))
        for number in (1, 2, 3):
            contact = Contact(bytes(31) + bytes([number]), (f"10.{number}.0.7:9000",))
            pair.node.routing_table.observe(contact, pair.host.runtime.now())

        answer = await pair.put(None, offers=(Offer(RecordKind.IMMUTABLE, bytes(32), OWNER.node_id, 1),))

        assert answer.wanted == ()

    run(main())


WRONG_FIELDS: list[dict[str, Any]] = [
    {"record": None},
    {"record": "text"},
    {"record": bytes(17 * 1024 + 1)},
    {"record": b"", "expected_seq": "5"},
    {"record": b"", "expected_seq": True},
    {"record": b"", "expected_seq": -1},
    {"record": b"", "expected_seq": 2**63},
    {"record": b"", "expected_seq": 1.0},
    {"record": b"", "offers": None},
    {"record": b"", "offers": {}},
    {"record": b"", "offers": [None]},
    {"record": b"", "offers": [[2, bytes(32), bytes(32)]]},
    {"record": b"", "offers": [["2", bytes(32), bytes(32), 1]]},
    {"record": b"", "offers": [[2, bytes(31), bytes(32), 1]]},
    {"record": b"", "offers": [[2, bytes(32), "o" * 32, 1]]},
    {"record": b"", "offers": [[2, bytes(32), bytes(32), float("nan")]]},
    {"record": b"", "offers": [[2, bytes(32), bytes(32), 1]] * 257},
]


@pytest.mark.parametrize("request_", WRONG_FIELDS, ids=lambda request: str(request)[:60])
def test_a_store_of_another_shape_is_a_bad_request(request_: dict[str, Any]):
    async def main() -> None:
        pair = Pair()

        with pytest.raises(RemoteError) as refused:
            await pair.ask("_dht.store", request_)

        assert refused.value.code == "bad_request"

    run(main())

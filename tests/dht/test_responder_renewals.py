"""What a storer makes of a renewal: where the record lives on, every refusal, and what floods and strangers get."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dht.agents.index import capability_key
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.agents.renewal import Renewal, with_renewal
from dht.agents.shards import ShardReport
from dht.config import DHTConfig, LookupConfig, RecordConfig
from dht.contact import Contact
from dht.keyspace import distance
from dht.messages import FindValue, FindValueAnswer, RecordPlace, Renew, RenewAnswer, StoreAnswer
from dht.node import DHTNode
from dht.records import RENEWAL_LABEL, Refusal
from simulations.network import EPOCH_S, ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.identity import Identity, network_id_of, verify
from synapse_p2p.protocol.wire import pack

EPOCH_MS = round(EPOCH_S * 1000)
LEASE_S = 900.0
SKILLS = ("code-review", "nlp/summarization", "python")
NAMES = ("code-review", "nlp", "nlp/summarization", "python")
PLACES = tuple(RecordPlace(name, 0) for name in NAMES)


def at_ms(seconds: float) -> int:
    return EPOCH_MS + round(seconds * 1000)


class Storer:
    """A node that keeps an agent's record, that agent, and a stranger; both are clients of the network."""

    def __init__(self, *, k: int = 20, **bounds: Any) -> None:
        self.network = VirtualNetwork(asyncio.get_running_loop(), random.Random(1), ConstantLatency(), Digest())
        self.host = self.network.host()
        config = DHTConfig(lookup=LookupConfig(k=k), records=RecordConfig(**bounds))
        self.node = DHTNode(self.host, config=config)
        self.owner, self.stranger = self.network.client(), self.network.client()
        self.record = AgentRecord(
            public_key=self.owner.identity.public_key,
            seq=1,
            issued_ms=EPOCH_MS,
            expires_ms=at_ms(LEASE_S),
            network_id=network_id_of(""),
            addresses=(),
            reach=Reach.NONE,
            name="Reviewer",
            role="reviewer",
            description="x" * 150,
            capabilities=tuple(CapabilityClaim(skill) for skill in SKILLS),
        )
        self.sealed = self.record.seal(self.owner.identity)

    async def ask(self, caller: VirtualHost, endpoint: str, request: dict[str, Any]) -> Any:
        contact = Contact(self.host.id, self.host.advertised_addresses)
        return await caller.peers.call(contact, endpoint, request, timeout_s=5)

    async def store(self, envelope: bytes | None = None, names: Sequence[str] = NAMES) -> list[StoreAnswer]:
        requests = [{"record": envelope or self.sealed, "capability": name, "depth": 0} for name in names]
        return [StoreAnswer.from_map(await self.ask(self.owner, "_dht.store", request)) for request in requests]

    def renewal(
        self, *, seq: int = 2, issued_s: float = 200, life_s: float = LEASE_S, of: bytes | None = None
    ) -> Renewal:
        return Renewal.of(of or self.sealed, seq=seq, issued_ms=at_ms(issued_s), expires_ms=at_ms(issued_s + life_s))

    async def renew(
        self,
        renewal: Renewal | bytes,
        places: tuple[RecordPlace, ...] = PLACES,
        *,
        watched: int = 0,
        caller: VirtualHost | None = None,
    ) -> tuple[StoreAnswer, ...]:
        data = renewal if isinstance(renewal, bytes) else renewal.seal(self.owner.identity)
        request = Renew(data, places, watched).to_map()
        return RenewAnswer.from_map(await self.ask(caller or self.owner, "_dht.renew", request)).places

    def key(self, name: str, depth: int = 0) -> bytes:
        return capability_key(network_id_of(""), name, self.record.owner, depth)

    def held(self) -> list[bytes]:
        """The envelope under each name, where there is one by now."""
        now = self.host.runtime.now()
        return [stored.record for name in NAMES for stored in self.node.store.get(self.key(name), now)]

    def check(self) -> None:
        self.node.store.check_invariants()  # type: ignore[attr-defined]


def refusals(answers: Sequence[StoreAnswer]) -> list[str | None]:
    return [answer.refusal for answer in answers]


def test_one_renewal_lets_a_record_live_on_in_every_place_where_it_is_held():
    async def main() -> None:
        storer = Storer()
        await storer.store()
        await asyncio.sleep(450)

        renewal = storer.renewal(issued_s=450)
        answers = await storer.renew(renewal)

        assert refusals(answers) == [None] * 4
        assert [answer.report for answer in answers] == [ShardReport(1, 0, is_full=False, estimate=1)] * 4
        renewed = with_renewal(storer.sealed, renewal.seal(storer.owner.identity))
        assert storer.held() == [renewed] * 4
        await asyncio.sleep(LEASE_S - 1)
        assert storer.held() == [renewed] * 4  # it outlives the record's own lease by a half
        request = FindValue(storer.key("python"), "python").to_map()
        found = FindValueAnswer.from_map(await storer.ask(storer.stranger, "_dht.find_value", request))
        assert found.records == (renewed,)
        await asyncio.sleep(2)
        assert storer.held() == []
        storer.check()

    run(main())


def test_renewals_follow_each_other_and_an_older_one_changes_nothing():
    async def main() -> None:
        storer = Storer()
        await storer.store()
        second, third = storer.renewal(issued_s=450), storer.renewal(seq=3, issued_s=450.5)
        await asyncio.sleep(450)
        await storer.renew(second)
        await storer.renew(third)
        held = storer.held()

        again = await storer.renew(third)
        late = await storer.renew(second)

        assert refusals(again) == [None] * 4
        assert refusals(late) == [Refusal.STALE] * 4
        assert storer.held() == held == [with_renewal(storer.sealed, third.seal(storer.owner.identity))] * 4
        storer.check()

    run(main())


def test_a_place_where_nothing_is_held_says_so_and_the_others_are_renewed():
    async def main() -> None:
        storer = Storer()
        await storer.store(names=NAMES[:2])

        answers = await storer.renew(storer.renewal(), (*PLACES, RecordPlace("python", 7), RecordPlace("No Name!", 0)))

        assert refusals(answers) == [None, None, *[Refusal.NOT_HELD] * 4]
        assert len(storer.node.store) == 2

    run(main())


def test_a_record_that_has_run_out_lives_on_as_long_as_nobody_has_swept_it_away():
    async def main() -> None:
        storer = Storer()
        await storer.store()
        await asyncio.sleep(LEASE_S + 5)

        answers = await storer.renew(storer.renewal(issued_s=LEASE_S + 4))
        storer.node.store.expire(storer.host.runtime.now())

        # Each place is swept when its turn comes to be looked at: the first renews, and takes the others with it.
        assert refusals(answers) == [None, *[Refusal.NOT_HELD] * 3]
        assert len(storer.node.store) == 1

    run(main())


def test_a_renewal_of_another_version_or_of_what_was_withdrawn_is_stale():
    async def main() -> None:
        storer = Storer()
        other = replace(storer.record, seq=5, description="other").seal(storer.owner.identity)
        tombstone = storer.record.withdrawn(seq=6, issued_ms=EPOCH_MS).seal(storer.owner.identity)
        final = storer.record.revoked(issued_ms=EPOCH_MS).seal(storer.owner.identity)
        for envelope in (other, tombstone, final):
            await storer.store(envelope)

            answers = await storer.renew(storer.renewal(seq=9))

            assert refusals(answers) == [Refusal.STALE] * 4
            assert storer.held() == [envelope] * 4

    run(main())


def test_a_final_tombstone_has_no_renewal():
    async def main() -> None:
        storer = Storer()
        final = storer.record.revoked(issued_ms=EPOCH_MS).seal(storer.owner.identity)
        await storer.store(final)

        answers = await storer.renew(storer.renewal(of=final))

        assert refusals(answers) == [Refusal.MALFORMED] * 4
        assert storer.held() == [final] * 4

    run(main())


@pytest.mark.parametrize(
    ("times", "refusal"),
    [
        ({"life_s": 3601}, Refusal.LIFE_TOO_LONG),
        ({"issued_s": 301}, Refusal.FROM_THE_FUTURE),
        ({"issued_s": -901}, Refusal.EXPIRED),
        ({"seq": 1}, Refusal.MALFORMED),
    ],
)
def test_the_times_of_a_renewal_have_to_be_those_of_a_record(times: dict[str, Any], refusal: Refusal):
    async def main() -> None:
        storer = Storer()
        await storer.store()

        answers = await storer.renew(storer.renewal(**{"issued_s": 0, **times}))

        assert refusals(answers) == [refusal] * 4
        assert storer.held() == [storer.sealed] * 4

    run(main())


def test_whoever_brings_the_owners_word_is_welcome_and_nobody_elses_word_counts():
    async def main() -> None:
        storer = Storer()
        await storer.store()
        good = storer.renewal()
        forged = replace(good, public_key=storer.stranger.identity.public_key).seal(storer.stranger.identity)
        copied = in_the_name_of_the_owner(good, storer.stranger.identity)

        by_stranger_alone = await storer.renew(forged, caller=storer.stranger)
        by_stranger_as_owner = await storer.renew(copied, caller=storer.stranger)
        assert storer.held() == [storer.sealed] * 4
        brought = await storer.renew(good, caller=storer.stranger)

        assert refusals(by_stranger_alone) == [Refusal.NOT_HELD] * 4  # it is of the stranger's places, which are empty
        assert refusals(by_stranger_as_owner) == [Refusal.BAD_SIGNATURE] * 4
        assert refusals(brought) == [None] * 4
        assert len(storer.node.store) == 4
        storer.check()

    run(main())


def in_the_name_of_the_owner(renewal: Renewal, identity: Identity) -> bytes:
    """A renewal in the owner's name, signed by somebody else."""
    fields = {"key": renewal.public_key, "seq": renewal.seq, "issued": renewal.issued_ms}
    body = pack({**fields, "expires": renewal.expires_ms, "digest": renewal.digest})
    return pack([body, identity.sign(RENEWAL_LABEL, body)])


def test_no_flipped_bit_renews_anything():
    async def main() -> None:
        storer = Storer()
        await storer.store()
        good = storer.renewal().seal(storer.owner.identity)
        for position in range(0, 8 * len(good), 7):
            flipped = bytearray(good)
            flipped[position // 8] ^= 1 << position % 8

            answers = await storer.renew(bytes(flipped))

            assert None not in refusals(answers), position
        assert storer.held() == [storer.sealed] * 4
        assert refusals(await storer.renew(bytes(17))) == [Refusal.MALFORMED] * 4

    run(main())


def test_a_renewed_record_that_has_no_room_is_refused_and_the_old_one_stays():
    async def main() -> None:
        storer = Storer()
        await storer.store()
        before = storer.held()
        crowded = Storer(max_bytes_per_owner=4 * (1024 + len(storer.sealed)) + 50)
        await crowded.store()

        answers = await crowded.renew(crowded.renewal())

        assert refusals(answers) == [Refusal.OWNER_QUOTA] * 4
        assert len(crowded.held()) == 4 and len(crowded.held()[0]) == len(before[0])
        crowded.check()

    run(main())


def test_a_flood_of_bad_renewals_costs_the_storer_one_signature_each(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        storer = Storer()
        await storer.store()
        checked = 0

        def counting(*arguments: Any) -> bool:
            nonlocal checked
            checked += 1
            return verify(*arguments)

        monkeypatch.setattr("dht.records.verify", counting)
        for number in range(20):
            bad = in_the_name_of_the_owner(storer.renewal(seq=2 + number), storer.stranger.identity)
            await storer.renew(bad, caller=storer.stranger)
            await storer.renew(bad, caller=storer.stranger)
        empty = [RecordPlace(f"skill-{number}", 0) for number in range(64)]
        await storer.renew(storer.renewal(), tuple(empty), caller=storer.stranger)

        assert checked == 20
        assert storer.held() == [storer.sealed] * 4
        storer.check()

    run(main())


def test_contacts_are_named_near_the_places_that_are_watched_and_are_no_more_than_in_any_answer():
    async def main() -> None:
        storer = Storer()
        await storer.store()
        rng = random.Random(3)
        for number in range(60):
            contact = Contact(rng.randbytes(32), (f"10.8.{number}.1:9000",))
            storer.node.routing_table.observe(contact, storer.host.runtime.now())

        none = await storer.renew(storer.renewal())
        one = await storer.renew(storer.renewal(), watched=1)
        all_four = await storer.renew(storer.renewal(), watched=4)

        assert [len(answer.contacts) for answer in none] == [0, 0, 0, 0]
        assert [len(answer.contacts) for answer in one] == [20, 0, 0, 0]
        assert [len(answer.contacts) for answer in all_four] == [16, 16, 16, 16]
        stored = (await storer.store())[0].contacts
        assert one[0].contacts == stored
        for place, answer in zip(PLACES, all_four, strict=True):
            key = storer.key(place.capability)
            assert list(answer.contacts) == sorted(answer.contacts, key=lambda each: distance(each.id, key))

    run(main())


def test_a_storer_that_is_not_close_any_more_does_not_renew():
    async def main() -> None:
        storer = Storer(k=2)
        await storer.store()
        held = storer.held()
        key = storer.key(NAMES[0])
        for number in range(1, 5):
            contact = Contact(key[:-1] + bytes([key[-1] ^ number]), (f"10.8.{number}.1:9000",))
            storer.node.routing_table.observe(contact, storer.host.runtime.now())

        answers = await storer.renew(storer.renewal(), PLACES[:1])

        assert refusals(answers) == [Refusal.NOT_CLOSE]
        assert storer.held() == held

    run(main())

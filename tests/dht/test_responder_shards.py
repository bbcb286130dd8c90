"""What a storer says of a shard, how it pages and filters, and what it makes of questions that cannot be."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from dht.agents.index import capability_root, shard_key
from dht.agents.query import parse_query
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.agents.shards import ROOT_SHARD, Shard, rank_of
from dht.config import DHTConfig, RecordConfig
from dht.contact import Contact
from dht.messages import FindValue, FindValueAnswer, StoreAnswer
from dht.node import DHTNode
from simulations.network import EPOCH_S, ConstantLatency, Digest, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.trust import TrustConfig

SKILL = "code-review"
ROOT = capability_root(network_id_of(""), SKILL)
EPOCH_MS = round(EPOCH_S * 1000)
NOBODY_EXEMPT = ServerConfig(pool=PoolConfig(trust=TrustConfig(loopback=False, private=False)))


class Storer:
    """A node that keeps records, and somebody who asks it."""

    def __init__(self, *, server: ServerConfig | None = None, **bounds: Any) -> None:
        self.network = VirtualNetwork(
            asyncio.get_running_loop(), random.Random(1), ConstantLatency(), Digest(), config=server
        )
        self.host = self.network.host()
        self.node = DHTNode(self.host, config=DHTConfig(records=RecordConfig(**bounds)))
        self.caller = self.network.client()
        self.identities: list[Identity] = []

    async def fill(self, count: int, *, depth: int = 0, price: float = 1) -> list[StoreAnswer]:
        """Records of so many agents, each brought by itself from a place of its own."""
        return [await self.announce(Identity.from_seed(b"%032d" % n), depth=depth, price=price) for n in range(count)]

    async def announce(self, identity: Identity, *, depth: int = 0, price: float = 1) -> StoreAnswer:
        record = AgentRecord(
            public_key=identity.public_key,
            seq=1,
            issued_ms=EPOCH_MS,
            expires_ms=EPOCH_MS + 900_000,
            network_id=network_id_of(""),
            addresses=("10.9.9.9:9000",),
            reach=Reach.DIRECT,
            name="Reviewer",
            role="reviewer",
            description="x" * 100,
            capabilities=(CapabilityClaim(SKILL, attributes={"price": price}),),
        )
        self.identities.append(identity)
        request = {"record": record.seal(identity), "capability": SKILL, "depth": depth}
        return StoreAnswer.from_map(await self.ask("_dht.store", request))

    async def find(self, request: FindValue) -> FindValueAnswer:
        return FindValueAnswer.from_map(await self.ask("_dht.find_value", request.to_map()))

    async def ask(self, endpoint: str, request: dict[str, Any]) -> Any:
        contact = Contact(self.host.id, self.host.advertised_addresses)
        return await self.caller.peers.call(contact, endpoint, request, timeout_s=5)

    def owner_of(self, envelope: bytes) -> bytes:
        return self.node._responder.read(envelope).owner

    def in_shard(self, shard: Shard) -> int:
        return sum(shard.holds(rank_of(ROOT, identity.node_id)) for identity in self.identities)


def of_root(**fields: Any) -> FindValue:
    return FindValue.of_shard(ROOT, SKILL, ROOT_SHARD, b"nonce", **fields)


def test_a_storer_reports_on_the_shard_that_is_asked_for_and_sends_that_alone():
    async def main() -> None:
        storer = Storer(party_share=1.0)
        answers = await storer.fill(40)

        whole = await storer.find(of_root())
        half = await storer.find(FindValue.of_shard(ROOT, SKILL, Shard(1, 0), b""))
        other_half = Shard(1, 1)
        elsewhere = await storer.find(FindValue.of_shard(shard_key(ROOT, other_half.prefix, 1), SKILL, other_half, b""))
        under_a_wrong_key = await storer.find(FindValue.of_shard(ROOT, SKILL, other_half, b""))

        assert answers[-1].report == whole.report
        assert (whole.count, whole.depth, whole.full, whole.estimate) == (40, 0, False, 40)
        assert half.count == len(half.records) == storer.in_shard(Shard(1, 0)) > 5
        assert (elsewhere.count, elsewhere.records) == (0, ())
        assert under_a_wrong_key.count == 40, "a shard that is not kept there: all that is under the key"

    run(main())


def test_those_of_one_party_count_for_a_part_alone():
    async def main() -> None:
        storer = Storer(max_records_per_key=64)
        await storer.fill(20)  # all unseen: brought by somebody else

        answer = await storer.find(of_root())

        assert (answer.count, len(answer.records)) == (4, 20)

    run(main())


def test_an_overfull_key_says_so_and_names_the_deeper_estimate():
    async def main() -> None:
        storer = Storer(max_records_per_key=32, party_share=1.0)
        answers = await storer.fill(60)
        answer = await storer.find(of_root())

        assert answer.full
        assert answer.count == 32
        assert answer.estimate >= 40
        assert {each.refusal for each in answers} == {None, "full"}
        assert all(each.report is not None and each.report.is_full for each in answers[32:])

    run(main())


def test_pages_follow_each_other_until_all_were_sent_once():
    async def main() -> None:
        storer = Storer(max_answer_bytes=4096)
        await storer.fill(30)
        request, sent, pages = of_root(), [], 0
        while True:
            answer = await storer.find(request)
            sent += answer.records
            pages += 1
            if not answer.next:
                break
            request = request.after(answer)

        assert pages > 2
        assert len(sent) == len(set(sent)) == 30

    run(main())


def test_a_query_is_held_against_some_records_at_a_time_and_misses_none():
    async def main() -> None:
        storer = Storer(max_records_per_owner=1000)
        await storer.fill(270, price=1)
        cheap = Identity.from_seed(b"cheap".ljust(32))
        await storer.announce(cheap, price=0)
        query = parse_query([SKILL], {"price": {"<": 1}})

        first = await storer.find(of_root(query=query))
        second = await storer.find(of_root(query=query).after(first))

        assert first.next == 250
        sent = [storer.owner_of(envelope) for envelope in (*first.records, *second.records)]
        assert sent.count(cheap.node_id) == 1
        assert len(sent) <= 2, "and the proof that there are others"
        assert second.next == 0
        assert first.count == second.count

    run(main())


def test_a_storer_of_none_that_match_proves_with_another_that_it_keeps_the_shard():
    async def main() -> None:
        storer = Storer()
        await storer.fill(5, price=3)
        query = parse_query([SKILL], {"price": {"<": 1}})

        answer = await storer.find(of_root(query=query))
        after = await storer.find(of_root(query=query, limit=2).after(replace(answer, next=1)))

        assert storer.owner_of(answer.records[0]) in [identity.node_id for identity in storer.identities]
        assert (len(answer.records), answer.count, answer.next) == (1, 5, 0)
        assert after.records == (), "it was proved before"

    run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 65},
        {"depth": -1},
        {"depth": True},
        {"prefix": b"x" * 9},
        {"capability": "x" * 129},
        {"capability": 1},
        {"nonce": b"n" * 17},
        {"limit": -1},
        {"limit": 2**63},
        {"skip": -1},
        {"skip": 2**63},
        {"query": 1},
        {"query": {}},
        {"query": {"wanted": []}},
        {"query": {"wanted": [["x", False, []]] * 9}},
        {"query": {"wanted": [["x", False, []]], "where": 5}},
    ],
    ids=str,
)
def test_a_question_out_of_bounds_is_a_bad_request(wrong: dict[str, Any]):
    async def main() -> None:
        storer = Storer(server=NOBODY_EXEMPT)
        await storer.fill(1)

        with pytest.raises(RemoteError) as refused:
            await storer.ask("_dht.find_value", of_root().to_map() | wrong)

        assert refused.value.code == "bad_request"
        assert len((await storer.find(of_root())).records) == 1, "and it goes on serving"

    run(main())


@pytest.mark.parametrize(
    "odd",
    [
        {"depth": 3, "prefix": b""},
        {"depth": 3, "prefix": b"\xff"},
        {"depth": 0, "prefix": b"\x00"},
        {"capability": "not a name!"},
        {"capability": ""},
        {"skip": 2**62},
        {"limit": 2**31},
        {"query": {"wanted": [["another", False, []]]}},
        {"query": {"wanted": [["x", False, []]], "where": [["price", "operator of tomorrow", 1]]}},
        {"unknown": list(range(100))},
    ],
    ids=str,
)
def test_an_odd_question_gets_an_answer(odd: dict[str, Any]):
    async def main() -> None:
        storer = Storer(server=NOBODY_EXEMPT)
        await storer.fill(3)

        answer = FindValueAnswer.from_map(await storer.ask("_dht.find_value", of_root().to_map() | odd))

        assert len(answer.records) in (0, 1, 3), "none, the proof that there are some, or all"
        assert answer.next == 0

    run(main())


def test_a_record_at_any_depth_is_kept_under_the_key_that_follows_from_its_signer():
    async def main() -> None:
        storer = Storer()
        identity = Identity.from_seed(b"deep".ljust(32))
        for depth in (0, 1, 7, 64):
            assert (await storer.announce(identity, depth=depth)).stored
        shards = [Shard(depth, rank_of(ROOT, identity.node_id) >> (64 - depth)) for depth in (0, 1, 7, 64)]
        keys = [shard_key(ROOT, shard.prefix, shard.depth) for shard in shards]

        assert set(storer.node.store.held_keys()) == set(keys)

    run(main())

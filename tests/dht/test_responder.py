"""What a node answers: every endpoint over the real encoding, every refusal, and every kind of nonsense."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from dht.agents.index import capability_key, capability_root
from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.config import DHTConfig, LookupConfig, RecordConfig, RoutingConfig
from dht.contact import Contact, decode_contacts
from dht.keyspace import distance
from dht.messages import FindValueAnswer, StoreAnswer
from dht.node import DHTNode
from dht.records import Refusal
from simulations.network import EPOCH_S, ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.protocol.wire import CONTROL_LIMITS, pack, unpack
from synapse_p2p.trust import TrustConfig

ENDPOINTS = ("_dht.ping", "_dht.find_node", "_dht.find_value", "_dht.store", "_dht.renew", "_dht.exchange")
OWNER = Identity.from_seed(b"o" * 32)
NOBODY_EXEMPT = ServerConfig(pool=PoolConfig(trust=TrustConfig(loopback=False, private=False)))
SKILL = "code-review"
EPOCH_MS = round(EPOCH_S * 1000)


def make_record(
    identity: Identity = OWNER,
    *,
    seq: int = 1,
    network: str = "",
    issued_s: float = 0,
    life_s: float = 900,
    capabilities: tuple[str, ...] = (SKILL,),
) -> AgentRecord:
    """Times are seconds of the virtual clock."""
    issued_ms = EPOCH_MS + round(issued_s * 1000)
    return AgentRecord(
        public_key=identity.public_key,
        seq=seq,
        issued_ms=issued_ms,
        expires_ms=issued_ms + round(life_s * 1000),
        network_id=network_id_of(network),
        addresses=("10.9.9.9:9000",),
        reach=Reach.DIRECT,
        name="Reviewer",
        role="reviewer",
        description="",
        capabilities=tuple(CapabilityClaim(name) for name in capabilities),
    )


def sealed(identity: Identity = OWNER, **fields: Any) -> bytes:
    return make_record(identity, **fields).seal(identity)


class Pair:
    """A node that answers, and a host without an address that asks it; nobody is exempt from limits of place."""

    def __init__(self, config: DHTConfig | None = None) -> None:
        self.network = VirtualNetwork(
            asyncio.get_running_loop(), random.Random(1), ConstantLatency(), Digest(), config=NOBODY_EXEMPT
        )
        self.host = self.network.host()
        self.node = DHTNode(self.host, config=config)
        self.caller = self.network.client()

    async def ask(self, endpoint: str, request: dict[str, Any], *, caller: VirtualHost | None = None) -> Any:
        contact = Contact(self.host.id, self.host.advertised_addresses)
        return await (caller or self.caller).peers.call(contact, endpoint, request, timeout_s=5)

    async def store(self, record: bytes, capability: str | None = SKILL, **more: Any) -> StoreAnswer:
        request = {"record": record, "capability": capability, **more}
        return StoreAnswer.from_map(await self.ask("_dht.store", request))

    def know(self, *node_ids: bytes) -> list[Contact]:
        contacts = [Contact(node_id, (f"10.{number + 1}.0.7:9000",)) for number, node_id in enumerate(node_ids)]
        for contact in contacts:
            self.node.routing_table.observe(contact, self.host.runtime.now())
        return contacts


def random_ids(count: int) -> list[bytes]:
    rng = random.Random(7)
    return [rng.randbytes(32) for _ in range(count)]


# Who is answered


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_plain_callers_are_refused_on_every_endpoint(endpoint: str):
    async def main() -> RemoteError:
        pair = Pair()
        handler = pair.host.mounted(endpoint)
        assert handler is not None
        with pytest.raises(RemoteError) as refused:
            handler(good_request(endpoint), CallContext(peer=None, address="127.0.0.1:5000"))
        assert len(pair.node.store) == 0
        return refused.value

    error = run(main())

    assert error.code == "failed"
    assert error.details["reason"] == "not_authenticated"


def test_who_asks_to_be_dialed_is_dialed_though_there_is_no_room_for_it():
    """And not again in the next 30 s: nobody has us dial all the time. A client has no address to dial."""

    async def main() -> None:
        pair = Pair(DHTConfig(routing=RoutingConfig(k=1)))
        await pair.node.start()
        hosts = [pair.network.host(ip=f"8.{number}.1.1") for number in range(1, 5)]
        answers = []
        for host in hosts:
            await pair.ask("_dht.ping", {}, caller=host)
            await asyncio.sleep(5)
            answers.append(await pair.ask("_dht.ping", {"prove": True}, caller=host))
        await asyncio.sleep(40)
        left_out = [host for host in hosts if pair.node.routing_table.get(host.id) is None]
        assert left_out, "one has no room"
        dialed_at = left_out[0].peers.dialed_at

        willing = await pair.ask("_dht.ping", {"prove": True}, caller=left_out[0])
        again = await pair.ask("_dht.ping", {"prove": True}, caller=left_out[0])
        of_client = await pair.ask("_dht.ping", {"prove": True})
        await asyncio.sleep(5)

        assert willing["dials"] is True
        assert "dials" not in again
        assert "dials" not in of_client
        assert left_out[0].peers.dialed_at != dialed_at
        assert pair.node.routing_table.get(left_out[0].id) is None
        await pair.node.stop()

    run(main())


def test_the_asker_is_never_named_to_itself():
    async def main() -> None:
        pair = Pair()
        others = pair.know(*random_ids(5))
        pair.know(pair.caller.id)

        near = await pair.ask("_dht.find_node", {"target": pair.caller.id})
        sample = await pair.ask("_dht.exchange", {"count": 20})

        for answer in (near, sample):
            assert {contact[0] for contact in answer["contacts"]} == {other.id for other in others}

    run(main())


@pytest.mark.parametrize("endpoint", ["_dht.find_node", "_dht.find_value", "_dht.store", "_dht.exchange"])
def test_suspects_are_never_handed_to_others(endpoint: str):
    async def main() -> None:
        pair = Pair()
        good, suspect, *_ = pair.know(*random_ids(2))
        pair.node.routing_table.on_failure(suspect.id, pair.host.runtime.now())

        answer = await pair.ask(endpoint, good_request(endpoint))

        assert decode_contacts(answer["contacts"], max_count=20) == [good]

    run(main())


def test_contacts_come_nearest_first_and_at_most_k():
    async def main() -> None:
        pair = Pair()
        target = bytes(32)
        known = pair.know(*random_ids(60))

        answer = await pair.ask("_dht.find_node", {"target": target})

        held = [contact for contact in known if contact.id in pair.node.routing_table]
        nearest = sorted(held, key=lambda contact: distance(contact.id, target))[:20]
        assert decode_contacts(answer["contacts"], max_count=20) == nearest

    run(main())


# What is kept


def test_a_record_is_kept_under_the_key_of_its_capability_and_served_as_received():
    async def main() -> None:
        pair = Pair()
        record = sealed()

        answer = await pair.store(record)
        found = FindValueAnswer.from_map(await pair.ask("_dht.find_value", {"key": root_of(SKILL)}))

        assert (answer.stored, answer.refusal) == (True, None)
        assert (found.records, found.count, found.full) == ((record,), 1, False)

    run(main())


def test_a_descendant_is_kept_under_the_broader_name_too():
    async def main() -> None:
        pair = Pair()

        answer = await pair.store(sealed(capabilities=("nlp/summarization",)), "nlp")

        assert answer.stored
        assert pair.node.store.held_keys() == [root_of("nlp")]

    run(main())


def test_the_caller_cannot_choose_the_key():
    async def main() -> None:
        pair = Pair()

        plain = await pair.store(sealed(), key=bytes(32), prefix=b"\xff")
        deep = await pair.store(sealed(), depth=3)

        assert plain.stored
        assert deep.stored
        network_id = pair.host.network_id
        keys = {capability_key(network_id, SKILL, OWNER.node_id, depth) for depth in (0, 3)}
        assert set(pair.node.store.held_keys()) == keys

    run(main())


def flipped(envelope: bytes) -> bytes:
    return envelope[:-1] + bytes([envelope[-1] ^ 1])


REFUSED = {
    Refusal.TOO_LARGE: lambda: pack([3, sealed(), bytes(64), bytes(1200)]),
    Refusal.MALFORMED: lambda: b"\x01",
    Refusal.UNKNOWN_KIND: lambda: pack([4, b"", bytes(64)]),
    Refusal.WRONG_NETWORK: lambda: sealed(network="another"),
    Refusal.BAD_SIGNATURE: lambda: flipped(sealed()),
    Refusal.EXPIRED: lambda: sealed(issued_s=-1000, life_s=999),
    Refusal.FROM_THE_FUTURE: lambda: sealed(issued_s=301),
    Refusal.LIFE_TOO_LONG: lambda: sealed(life_s=3700),
    Refusal.NOT_LISTED: lambda: sealed(capabilities=("cooking", "code-review-2")),
}


@pytest.mark.parametrize("refusal", REFUSED)
def test_a_record_that_breaks_a_rule_is_refused_with_its_word(refusal: Refusal):
    async def main() -> None:
        pair = Pair()

        answer = await pair.store(REFUSED[refusal]())

        assert (answer.stored, answer.refusal) == (False, refusal)
        assert len(pair.node.store) == 0

    run(main())


@pytest.mark.parametrize("capability", [None, "", "/", "Code-Review", "code-review/python"])
def test_a_record_is_stored_only_for_a_name_that_it_lists(capability: str | None):
    async def main() -> None:
        pair = Pair()

        answer = await pair.store(sealed(), capability)

        assert answer.refusal == Refusal.NOT_LISTED

    run(main())


def test_an_older_record_is_stale_and_the_newer_one_comes_back():
    async def main() -> None:
        pair = Pair()
        newer = sealed(seq=2)
        await pair.store(newer)

        answer = await pair.store(sealed(seq=1))

        assert (answer.stored, answer.refusal, answer.newer) == (False, Refusal.STALE, newer)

    run(main())


def test_another_record_with_the_same_number_is_stale_and_the_same_bytes_are_not():
    async def main() -> None:
        pair = Pair()
        await pair.store(sealed(seq=2))

        same = await pair.store(sealed(seq=2))
        other = await pair.store(sealed(seq=2, life_s=100))

        assert same.stored
        assert other.refusal == Refusal.STALE

    run(main())


def test_a_record_far_from_us_is_not_close_and_comes_with_nearer_contacts():
    async def main() -> None:
        pair = Pair(DHTConfig(lookup=LookupConfig(k=2)))
        key = root_of(SKILL)
        nearer = [key[:-1] + bytes([key[-1] ^ number]) for number in range(1, 5)]
        pair.know(*nearer[:3])
        before = await pair.store(sealed(seq=1))
        pair.know(*nearer)

        after = await pair.store(sealed(seq=2))

        assert before.stored, "three nearer ones are less than twice k"
        assert after.refusal == Refusal.NOT_CLOSE
        assert [contact.id for contact in after.contacts] == nearer[:2]

    run(main())


@pytest.mark.parametrize("bound", ["max_records", "max_records_per_key"])
def test_a_full_store_refuses_newcomers_and_still_renews_what_it_has(bound: str):
    async def main() -> None:
        pair = Pair(DHTConfig(records=RecordConfig(**{bound: 1})))
        other = Identity.from_seed(b"p" * 32)
        await pair.store(sealed(seq=1))

        newcomer = await pair.store(sealed(other))
        renewal = await pair.store(sealed(seq=2))

        assert newcomer.refusal == Refusal.FULL
        assert renewal.stored

    run(main())


def test_one_owner_cannot_fill_a_store():
    async def main() -> None:
        pair = Pair(DHTConfig(records=RecordConfig(max_records_per_owner=2)))
        record = sealed(capabilities=("a", "b", "c"))

        answers = [await pair.store(record, name) for name in ("a", "b", "c")]

        assert [answer.refusal for answer in answers] == [None, None, Refusal.OWNER_QUOTA]

    run(main())


def test_a_stored_record_ends_when_its_owner_said():
    async def main() -> None:
        pair = Pair()
        await pair.store(sealed(life_s=60))

        await asyncio.sleep(59)
        before = await pair.ask("_dht.find_value", {"key": root_of(SKILL)})
        await asyncio.sleep(2)
        after = await pair.ask("_dht.find_value", {"key": root_of(SKILL)})

        assert (len(before["records"]), len(after["records"])) == (1, 0)

    run(main())


# What is served


def test_the_searchers_nonce_decides_which_records_come_first():
    async def main() -> None:
        pair = Pair()
        for number in range(8):
            owner = Identity.from_seed(bytes([number]) * 32)
            await pair.store(sealed(owner))

        async def first(nonce: bytes) -> bytes:
            answer = await pair.ask("_dht.find_value", {"key": root_of(SKILL), "nonce": nonce, "limit": 1})
            assert (len(answer["records"]), answer["count"]) == (1, 8)
            return answer["records"][0]

        firsts = [await first(bytes([number])) for number in range(40)]

        assert firsts[0] == await first(b"\0")
        assert len(set(firsts)) > 4

    run(main())


def test_an_answer_holds_what_fits_and_says_how_many_there_are():
    async def main() -> None:
        pair = Pair(DHTConfig(records=RecordConfig(max_answer_bytes=1500)))
        size_bytes = len(sealed())
        for number in range(12):
            await pair.store(sealed(Identity.from_seed(bytes([number]) * 32)))

        answer = await pair.ask("_dht.find_value", {"key": root_of(SKILL)})

        assert len(answer["records"]) == 1500 // size_bytes < 12
        assert answer["count"] == 12

    run(main())


# Nonsense

MISSING = object()
BAD_FIELDS = [
    ("_dht.find_node", "target", [MISSING, None, True, 5, "t" * 32, b"", b"t" * 31, b"t" * 33, [], {}]),
    ("_dht.find_node", "radius", [True, 5, "r" * 32, b"r" * 31, b"r" * 33, [], {}]),
    ("_dht.find_value", "key", [MISSING, None, 5, "k" * 32, b"k" * 31, b"k" * 33, {}]),
    ("_dht.find_value", "capability", [5, b"code-review", ["code-review"], "x" * 129, {}]),
    ("_dht.find_value", "depth", [None, True, -1, 65, 2**64 - 1, 1.0, "1"]),
    ("_dht.find_value", "prefix", [None, "1", 1, b"p" * 9]),
    ("_dht.find_value", "nonce", [None, "n", 1, b"n" * 17]),
    ("_dht.find_value", "limit", [None, True, -1, 2**63, 2.0, "9"]),
    ("_dht.store", "record", [MISSING, None, 5, "record", [b"record"], b"r" * 17_409]),
    ("_dht.store", "capability", [5, b"code-review", "x" * 129, [], {}]),
    ("_dht.store", "depth", [None, False, -1, 65, 2**64 - 1, 0.5, "0"]),
    ("_dht.renew", "renewal", [MISSING, None, 5, "r" * 9, b"r" * 257, []]),
    ("_dht.renew", "places", [MISSING, None, 5, [], ["x"], [[SKILL]], [[SKILL, 0]] * 2, [[5, 0]], {}]),
    ("_dht.renew", "watched", [None, True, -1, 2, 0.0]),
    ("_dht.ping", "leaving", [None, 0, 1, "true", b"", []]),
    ("_dht.ping", "prove", [None, 0, 1, "true", b"", []]),
    ("_dht.exchange", "count", [MISSING, None, True, 0, -1, 21, 2**64 - 1, 1.5, "5", b"5", []]),
]


def good_request(endpoint: str) -> dict[str, Any]:
    return {
        "_dht.ping": {"leaving": False, "prove": False},
        "_dht.find_node": {"target": bytes(32), "radius": None},
        "_dht.find_value": {"key": bytes(32), "capability": SKILL, "depth": 0, "prefix": b"", "nonce": b"", "limit": 0},
        "_dht.store": {"record": sealed(), "capability": SKILL, "depth": 0},
        "_dht.renew": {"renewal": b"", "places": [[SKILL, 0]], "watched": 0},
        "_dht.exchange": {"count": 5},
    }[endpoint]


@pytest.mark.parametrize(("endpoint", "field", "values"), BAD_FIELDS)
def test_a_field_of_a_wrong_type_or_size_is_a_bad_request_that_names_it(endpoint: str, field: str, values: list[Any]):
    async def main() -> None:
        pair = Pair()
        for value in values:
            request = good_request(endpoint)
            if value is MISSING:
                del request[field]
            else:
                request[field] = value

            with pytest.raises(RemoteError, match=field) as refused:
                await pair.ask(endpoint, request)

            assert refused.value.code == "bad_request", value
        assert len(pair.node.store) == 0

    run(main())


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_unknown_keys_of_a_request_are_ignored(endpoint: str):
    async def main() -> tuple[Any, Any]:
        request = good_request(endpoint)
        plain = await Pair().ask(endpoint, request)
        with_more = await Pair().ask(endpoint, {**request, "from_the_future": [1, {"deep": b"bytes"}], "rpc": 1})
        return plain, with_more

    plain, with_more = run(main())

    for answer in (plain, with_more):
        answer.pop("unix_ms", None)
    assert plain == with_more


def bodies() -> list[Any]:
    """Bodies of a record with one thing wrong in each."""
    good = unpack(unpack(sealed(), CONTROL_LIMITS)[1], CONTROL_LIMITS)
    wrong: list[Any] = [[], 5, None, b"", {}, {1: 2}]
    for field in good:
        wrong += [
            {**good, field: value} for value in (None, True, -1, 2**64 - 1, 1.5, "x" * 300, b"y" * 33, [], [[]], {})
        ]
        wrong.append({key: value for key, value in good.items() if key != field})
    claims = [
        ["X"],
        ["a", 1, {}, b""],
        ["a", "", [], b""],
        ["a", "", {}, b"short"],
        ["a b", "", {}, b""],
        "a",
        ["", "", {}, b""],
    ]
    wrong += [{**good, "capabilities": [claim]} for claim in claims]
    wrong += [{**good, "capabilities": [["a", "", {"n": value}, b""]]} for value in ([], None, float("nan"), 2**64 - 1)]
    wrong += [{**good, "addresses": addresses} for addresses in ([1], ["nowhere"], ["10.0.0.1:0"], ["10.0.0.1:1"] * 5)]
    return wrong


def test_no_body_of_a_record_breaks_a_storer_or_is_kept():
    async def main() -> None:
        pair = Pair()
        for body in bodies():
            packed = pack(body)
            envelope = pack([3, packed, OWNER.sign(b"synapse-record:v1:agent:", packed)])

            answer = await pair.store(envelope)

            # An agent that says nothing of its role, its description or how it is reached may be kept.
            assert answer.stored or answer.refusal in set(Refusal), body
            if answer.stored:
                assert body["capabilities"][0][0] == SKILL

    run(main())


def test_random_bytes_are_refused_as_malformed():
    async def main() -> None:
        pair = Pair()
        rng = random.Random(3)
        for _ in range(100):
            answer = await pair.store(rng.randbytes(rng.randrange(200)))

            assert answer.refusal in (Refusal.MALFORMED, Refusal.UNKNOWN_KIND)

    run(main())


def root_of(capability: str) -> bytes:
    return capability_root(network_id_of(""), capability)

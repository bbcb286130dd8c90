"""Asking others: what each kind of answer and silence means to the routing table, and whole lookups."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from dht.config import DHTConfig, DialConfig, LookupConfig
from dht.contact import Contact, encode_contact
from dht.dial_policy import DialPolicy
from dht.lookup import Lookup, LookupMode
from dht.outcome import TraceEvent
from dht.requester import Requester
from dht.routing import RoutingTable
from simulations.network import ConstantLatency, Digest, VirtualHost, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.exceptions import (
    CallError,
    HandshakeFailed,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.trust import TrustConfig


class Asker:
    """A host with a routing table that nobody but the requester fills."""

    def __init__(self, *, seed: int = 1, config: DHTConfig | None = None, trust: TrustConfig | None = None) -> None:
        self.network = VirtualNetwork(asyncio.get_running_loop(), random.Random(seed), ConstantLatency(), Digest())
        self.host = self.network.host()
        self.config = config or DHTConfig()
        self.table = RoutingTable(self.host.id, self.config.routing)
        self.policy = DialPolicy(
            self.config.dial, trust or TrustConfig(), own_addresses=lambda: self.host.advertised_addresses
        )
        self.added: list[Contact] = []
        self.candidates: list[Contact] = []
        self.requester = Requester(
            self.host,
            self.table,
            self.config,
            self.policy,
            on_added=self.added.append,
            on_gone=lambda contact: None,
            on_candidate=self.candidates.append,
        )

    def peer(self, answers: dict[str, Any] | None = None) -> tuple[VirtualHost, Contact]:
        """Somebody who answers these endpoints; with a value, or as a function of the request."""
        host = self.network.host()
        answers = {"_dht.ping": {"unix_ms": 5}, "_dht.find_node": {"contacts": []}, **(answers or {})}

        def handler(answer: Any) -> Any:
            return lambda request, context: answer(request) if callable(answer) else answer

        host.mount("_dht.", {endpoint: handler(answer) for endpoint, answer in answers.items()})
        return host, Contact(host.id, host.advertised_addresses)

    def know(self, contact: Contact) -> None:
        self.table.observe(contact, self.host.runtime.now())

    def is_suspect(self, contact: Contact) -> bool:
        return contact not in self.table.closest_unsuspected(contact.id, 1)


def refuse(error: Exception) -> Any:
    def answer(_: Any) -> Any:
        raise error

    return answer


def test_whoever_answers_our_dial_enters_the_table_and_is_told_of_once():
    async def main() -> None:
        asker = Asker()
        _, contact = asker.peer()

        answers = [await asker.requester.ping(contact) for _ in range(3)]

        assert answers[0].unix_ms == 5
        assert list(asker.table) == asker.added == [contact]
        assert asker.candidates == []

    run(main())


def test_whoever_dialed_us_is_a_candidate_when_it_answers():
    async def main() -> None:
        asker = Asker()
        peer, contact = asker.peer()
        await peer.peers.call(asker_contact(asker), "_synapse.ping", {}, timeout_s=5)

        await asker.requester.ping(contact)

        assert len(asker.table) == 0
        assert asker.candidates == [contact]

    run(main())


def asker_contact(asker: Asker) -> Contact:
    return Contact(asker.host.id, asker.host.advertised_addresses)


@pytest.mark.parametrize("state", ["crash", "fall_silent"])
def test_a_contact_that_is_gone_is_suspect_at_once_and_evicted_after_two_failures(state: str):
    async def main() -> None:
        asker = Asker()
        peer, contact = asker.peer()
        await asker.requester.ping(contact)
        getattr(peer, state)()

        for held in (True, False):
            with pytest.raises((PeerUnavailable, Timeout)):
                await asker.requester.ping(contact)
            assert asker.is_suspect(contact)
            assert (contact.id in asker.table) is held

    run(main())


@pytest.mark.parametrize(
    "answer",
    [None, [], 5, {}, {"unix_ms": "noon"}, {"unix_ms": -1}, {"unix_ms": True}, refuse(ValueError("a bug of theirs"))],
)
def test_a_contact_that_answers_nonsense_is_evicted_like_a_silent_one(answer: Any):
    async def main() -> None:
        asker = Asker()
        _, contact = asker.peer({"_dht.ping": answer})
        asker.know(contact)

        for _ in range(2):
            with pytest.raises((InvalidMessageError, RemoteError)):
                await asker.requester.ping(contact)

        assert contact.id not in asker.table

    run(main())


def test_a_busy_contact_keeps_its_place():
    async def main() -> None:
        asker = Asker()
        _, contact = asker.peer({"_dht.ping": refuse(RemoteError("busy", "too much to do"))})
        asker.know(contact)

        for _ in range(3):
            with pytest.raises(RemoteError, match="too much"):
                await asker.requester.ping(contact)

        assert contact.id in asker.table
        assert not asker.is_suspect(contact)

    run(main())


def test_one_who_comes_back_as_somebody_else_leaves_no_ghost_at_its_address():
    async def main() -> None:
        asker = Asker()
        host, before = asker.peer()
        await asker.requester.ping(before)
        host.crash()
        asker.network.remove(host)
        again = asker.network.host(ip="10.0.0.2")
        again.mount("_dht.", {"_dht.ping": lambda request, context: {"unix_ms": 5}})
        after = Contact(again.id, again.advertised_addresses)
        assert after.addresses == before.addresses

        for _ in range(2):
            with pytest.raises((PeerUnavailable, Timeout, HandshakeFailed)):
                await asker.requester.ping(before)
            await asyncio.sleep(60)
        await asker.requester.ping(after)

        assert list(asker.table) == [after]

    run(main())


def test_a_host_without_a_node_is_no_contact():
    async def main() -> None:
        asker = Asker()
        host = asker.network.host()

        with pytest.raises(RemoteError):
            await asker.requester.ping(Contact(host.id, host.advertised_addresses))

        assert len(asker.table) == 0
        assert asker.candidates == []

    run(main())


def test_a_liar_who_names_a_wrong_address_costs_a_good_contact_nothing():
    async def main() -> None:
        asker = Asker()
        _, good = asker.peer()
        _, liar = asker.peer({"_dht.find_node": {"contacts": [[good.id, ["10.200.0.1:9000"]]]}})
        asker.know(good)

        for _ in range(3):
            outcome = await asker.requester.lookup(good.id, LookupMode.STRICT, seeds=[liar, elsewhere(good)])
            assert good.id in {contact.id for contact in outcome.closest}

        assert asker.table.get(good.id) == good
        assert not asker.is_suspect(good)

    run(main())


def elsewhere(contact: Contact) -> Contact:
    return Contact(contact.id, ("10.200.0.1:9000",))


def test_a_check_dial_admits_who_listens_there_and_nobody_else():
    async def main() -> None:
        asker = Asker()
        peer, contact = asker.peer()
        _, other = asker.peer()
        peer_gone, gone = asker.peer()
        peer_gone.crash()

        for candidate in (contact, elsewhere(other), Contact(other.id, contact.addresses), gone, Contact(peer.id, ())):
            await asker.requester.check_dial(candidate)

        assert list(asker.table) == [contact]

    run(main())


# Lookups


def test_nobody_known_is_an_empty_and_complete_lookup():
    async def main() -> None:
        outcome = await Asker().requester.lookup(bytes(32), LookupMode.STRICT)

        assert (outcome.closest, outcome.asked, outcome.complete) == ((), 0, True)

    run(main())


def test_a_lookup_follows_what_it_is_told_and_says_in_how_many_hops():
    async def main() -> None:
        asker = Asker()
        target = bytes(32)
        _, last = asker.peer()
        _, middle = asker.peer({"_dht.find_node": {"contacts": [encode_contact(last)]}})
        _, first = asker.peer({"_dht.find_node": {"contacts": [encode_contact(middle)]}})
        asker.know(first)

        outcome = await asker.requester.lookup(target, LookupMode.STRICT)

        chain = {first.id: 1, middle.id: 2, last.id: 3}
        assert {contact.id for contact in outcome.closest} == set(chain)
        assert outcome.hops == chain[outcome.closest[0].id]
        assert set(asker.table) == {first, middle, last}

    run(main())


def test_a_contact_that_falls_silent_in_the_middle_of_a_lookup_becomes_suspect_even_when_it_ends_the_lookup():
    async def main() -> None:
        asker = Asker()
        silent_host, silent = asker.peer()
        _, good = asker.peer()
        await asker.requester.ping(silent)
        await asker.requester.ping(good)
        silent_host.fall_silent()

        outcome = await asker.requester.lookup(bytes(32), LookupMode.STRICT)

        assert outcome.closest == (good,)
        assert outcome.failed == 1
        assert asker.is_suspect(silent)
        # Left alone for half a minute, then asked once more and evicted.
        started_at = asker.host.runtime.now()
        await asker.requester.lookup(bytes(32), LookupMode.STRICT)
        assert asker.host.runtime.now() - started_at < 0.5
        assert silent.id in asker.table
        await asyncio.sleep(31)
        await asker.requester.lookup(bytes(32), LookupMode.STRICT)
        assert silent.id not in asker.table

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {"contacts": None},
        {"contacts": [[b"short", []]]},
        {"contacts": [[bytes(32), ["host.example:1"]]]},
        {"contacts": [[bytes(32), ["10.0.0.1:1"]]] * 65},
        {"contacts": [[bytes(32), ["10.0.0.1:1"] * 1000]]},
        {"contacts": [[bytes(32), ["10.0.0.1:0"]]]},
        refuse(CallError("no", "not today")),
    ],
)
def test_a_lookup_survives_answers_of_any_kind(answer: Any):
    async def main() -> None:
        asker = Asker(trust=NOBODY_EXEMPT)
        _, bad = asker.peer({"_dht.find_node": answer})
        _, good = asker.peer()
        asker.know(bad)
        asker.know(good)

        outcome = await asker.requester.lookup(bytes(32), LookupMode.STRICT)

        assert outcome.closest == (good,)
        assert (outcome.asked, outcome.failed, outcome.complete) == (2, 1, True)

    run(main())


@pytest.mark.parametrize("good_polls", [0, 1, 2, 3])
def test_an_error_of_our_own_ends_the_lookup_and_reaches_whoever_waits(
    good_polls: int, monkeypatch: pytest.MonkeyPatch
):
    poll, polls = Lookup.poll, itertools.count()

    def broken_poll(lookup: Lookup, now: float) -> Any:
        if next(polls) >= good_polls:
            raise ZeroDivisionError("our own bug")
        return poll(lookup, now)

    async def main() -> None:
        asker = Asker()
        for _ in range(3):
            asker.know(asker.peer()[1])
        before = asyncio.all_tasks()
        monkeypatch.setattr(Lookup, "poll", broken_poll)

        with pytest.raises(ZeroDivisionError):
            await asker.requester.lookup(asker.host.id, LookupMode.STRICT)
        assert asyncio.all_tasks() == before

    run(main())


def test_when_everybody_is_silent_the_lookup_ends_in_time_and_says_that_it_knows_nothing():
    async def main() -> None:
        config = DHTConfig(lookup=LookupConfig(dial_timeout_s=1.5))
        asker = Asker(config=config)
        for _ in range(6):
            host, contact = asker.peer()
            asker.know(contact)
            host.fall_silent()
        started_at = asker.host.runtime.now()

        outcome = await asker.requester.lookup(bytes(32), LookupMode.STRICT)

        assert (outcome.closest, outcome.complete, outcome.failed) == ((), False, 6)
        # Alpha is 3; after a second, before anybody was ever measured, the other three are asked beside the slow ones.
        assert asker.host.runtime.now() - started_at == pytest.approx(2.5)
        assert asker.table.closest_unsuspected(bytes(32), 20) == []

    run(main())


def test_contacts_that_a_liar_invents_do_not_make_a_lookup_endless():
    async def main() -> None:
        config = DHTConfig(lookup=LookupConfig(max_requests=30))
        asker = Asker(config=config)
        rng = random.Random(2)

        def invent(_: Any) -> dict[str, Any]:
            return {"contacts": [[bytes(20) + rng.randbytes(12), ["10.200.0.1:9000"]] for _ in range(20)]}

        liars = [asker.peer({"_dht.find_node": invent})[1] for _ in range(3)]
        for liar in liars:
            asker.know(liar)

        outcome = await asker.requester.lookup(bytes(32), LookupMode.STRICT)

        assert outcome.asked == 30
        assert not outcome.complete
        assert set(asker.table) == set(liars)

    run(main())


def test_a_fast_lookup_ends_at_the_first_value_and_leaves_no_task():
    async def main() -> None:
        asker = Asker()
        contacts = [asker.peer()[1] for _ in range(6)]
        for contact in contacts:
            asker.know(contact)

        async def ask(contact: Contact) -> tuple[list[Contact], bool]:
            await asyncio.sleep(0.5 if contact is asked[0] else 60)
            return [], True

        asked = asker.table.closest(bytes(32), 3)
        outcome = await asker.requester.lookup(bytes(32), LookupMode.FAST, ask=ask)

        assert (outcome.found, outcome.asked, outcome.closest) == (True, 3, (asked[0],))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_a_slow_dial_is_no_strike_and_a_silent_session_is_one():
    async def main() -> None:
        asker = Asker(config=DHTConfig(lookup=LookupConfig(dial_timeout_s=0.2)))
        _, contact = asker.peer({"_dht.ping": lambda request: {"unix_ms": 5}})
        asker.know(contact)

        # Two round trips of a new session fit into the time, a third for the answer does not.
        asker.network.latency = ConstantLatency(0.045)
        with pytest.raises(Timeout):
            await asker.requester.ping(contact)

        assert asker.host.peers.is_connected(contact.id)
        assert not asker.is_suspect(contact)

    run(main())


def test_two_guarded_lookups_of_one_key_follow_each_other_and_of_two_keys_do_not():
    async def main() -> None:
        asker = Asker()
        for _ in range(5):
            asker.know(asker.peer()[1])
        at_once: list[int] = []
        under_way = 0

        async def ask(contact: Contact) -> tuple[list[Contact], bool]:
            nonlocal under_way
            under_way += 1
            at_once.append(under_way)
            await asyncio.sleep(0.1)
            under_way -= 1
            return [], False

        async def look_for(*keys: bytes) -> int:
            at_once.clear()
            await asyncio.gather(*(asker.requester.lookup(key, LookupMode.GUARDED, ask=ask) for key in keys))
            return max(at_once)

        assert await look_for(bytes(32), bytes(32)) == 4
        assert await look_for(bytes(32), b"\x01" * 32) == 8
        assert asker.requester._turns == {}

    run(main())


def test_a_miss_goes_on_over_more_contacts_than_the_k_nearest():
    async def main() -> None:
        asker = Asker(config=DHTConfig(lookup=LookupConfig(k=3)))
        contacts = [asker.peer()[1] for _ in range(12)]
        for contact in contacts:
            asker.know(contact)
        holder = sorted(asker.table, key=lambda contact: contact.point)[6]

        async def ask(contact: Contact) -> tuple[list[Contact], bool]:
            return [], contact == holder

        outcome = await asker.requester.lookup(bytes(32), LookupMode.FAST, ask=ask)

        assert outcome.found
        assert outcome.paths > 1
        assert outcome.asked > 3

    run(main())


@pytest.mark.parametrize("turns", range(0, 40, 3))
def test_a_cancelled_lookup_leaves_no_task(turns: int):
    async def main() -> None:
        asker = Asker()
        for _ in range(4):
            asker.know(asker.peer()[1])
        looking = asyncio.ensure_future(asker.requester.lookup(bytes(32), LookupMode.STRICT))
        for _ in range(turns):
            await asyncio.sleep(0.01)

        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


# Whom we dial on the word of others: with exemptions off, and answers as liars give them

NOBODY_EXEMPT = TrustConfig(loopback=False, private=False)


def named_by(asker: Asker, *contacts: Contact) -> Contact:
    """A peer that names these contacts whatever is asked."""
    _, informer = asker.peer({"_dht.find_node": {"contacts": [encode_contact(contact) for contact in contacts]}})
    return informer


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:9000",
        "127.0.0.1:9000",
        "169.254.169.254:9000",
        "224.0.0.1:9000",
        "255.255.255.255:9000",
        "[::]:9000",
        "[::1]:9000",
        "[::ffff:127.0.0.1]:9000",
        "[fe80::1]:9000",
        "[ff02::1]:9000",
        "10.9.9.9:22",
        "203.0.113.7:9000",
    ],
)
def test_an_address_that_nobody_may_name_never_comes_out_of_an_answer(address: str):
    async def main() -> None:
        asker = Asker(trust=NOBODY_EXEMPT)
        _, good = asker.peer()
        informer = named_by(asker, Contact(bytes(31) + b"1", (address,)), good)

        answer = await asker.requester.find_node(informer, bytes(32))

        assert answer.contacts == (good,)

    run(main())


def test_what_nobody_may_name_is_dialed_in_no_lookup():
    async def main() -> None:
        asker = Asker(trust=NOBODY_EXEMPT)
        bad = [Contact(bytes([255, number]) + bytes(30), (f"127.0.0.1:{9000 + number}",)) for number in range(9)]
        informer = named_by(asker, *bad)

        outcome = await asker.requester.lookup(bytes([255]) * 32, LookupMode.STRICT, seeds=[informer])

        assert [step.contact_id for step in outcome.trace if step.contact_id != informer.id] == []
        assert outcome.asked == 1

    run(main())


def test_whoever_is_named_twice_and_in_no_order_is_asked_once_and_we_never():
    async def main() -> None:
        asker = Asker(trust=NOBODY_EXEMPT)
        peers = sorted((asker.peer()[1] for _ in range(6)), key=lambda contact: contact.point)
        elsewhere = [Contact(peer.id, ("10.66.6.6:9000",)) for peer in peers]
        informer = named_by(asker, *reversed(peers), *elsewhere, Contact(asker.host.id, ("10.66.6.7:9000",)))

        outcome = await asker.requester.lookup(bytes(32), LookupMode.STRICT, seeds=[informer])

        asked = [step.contact_id for step in outcome.trace if step.event is TraceEvent.ASKED]
        assert sorted(asked) == sorted([informer.id, *(peer.id for peer in peers)])
        assert list(outcome.closest) == sorted([informer, *peers], key=lambda contact: contact.point)
        assert asker.host.id not in asker.table

    run(main())


def test_of_an_exchange_twenty_addresses_are_taken():
    async def main() -> None:
        asker = Asker(trust=NOBODY_EXEMPT)
        contacts = [
            Contact(bytes([number + 1]) * 32, tuple(f"10.{number}.{host}.1:9000" for host in range(4)))
            for number in range(20)
        ]
        named = {"contacts": [encode_contact(contact) for contact in contacts]}
        _, informer = asker.peer({"_dht.exchange": named})

        answer = await asker.requester.exchange(informer, 20)

        assert sum(len(contact.addresses) for contact in answer.contacts) == 20

    run(main())


def test_a_host_that_does_not_answer_is_dialed_three_times_an_hour_whoever_names_it():
    async def main() -> None:
        asker = Asker(trust=NOBODY_EXEMPT)
        dials: list[str] = []
        victims = [Contact(bytes([number + 1]) * 32, (f"10.250.9.9:{2000 + number}",)) for number in range(9)]
        for informer in (named_by(asker, *victims[:4]), named_by(asker, *victims[4:])):
            await asker.requester.find_node(informer, bytes(32))

        for victim in victims:
            with pytest.raises((PeerUnavailable, Timeout)) as caught:
                await asker.requester.ping(victim)
            if not isinstance(caught.value, PeerUnavailable) or caught.value.was_tried:
                dials += victim.addresses

        assert len(dials) == 3

    run(main())


def test_peers_that_answer_are_dialed_as_many_as_there_are():
    async def main() -> None:
        asker = Asker(trust=NOBODY_EXEMPT)
        peers = [asker.peer()[1] for _ in range(90)]
        for start in range(0, 90, 30):
            await asker.requester.find_node(named_by(asker, *peers[start : start + 30]), bytes(32))

        for peer in peers:
            await asker.requester.ping(peer)

        asker.policy.check_invariants()

    run(main())


def test_a_contact_we_proved_is_asked_at_its_own_address_whatever_others_say():
    async def main() -> None:
        asker = Asker(config=DHTConfig(dial=DialConfig(max_dials_per_minute=1)), trust=NOBODY_EXEMPT)
        _, good = asker.peer()
        await asker.requester.ping(good)
        lie = Contact(good.id, ("10.66.6.6:9000",))

        answers = [await asker.requester.ping(lie) for _ in range(5)]

        assert len(answers) == 5
        assert asker.table.get(good.id) == good

    run(main())


def test_a_contact_that_is_not_dialed_is_no_suspect_for_it():
    async def main() -> None:
        asker = Asker(config=DHTConfig(dial=DialConfig(max_dials_per_host=1)), trust=NOBODY_EXEMPT)
        first, second = (Contact(bytes([number]) * 32, (f"10.250.9.9:{2000 + number}",)) for number in (1, 2))
        with pytest.raises(Timeout):
            await asker.requester.ping(first)

        with pytest.raises(PeerUnavailable, match="did not answer several dials") as caught:
            await asker.requester.ping(second)

        assert not caught.value.was_tried
        assert not caught.value.may_have_started

    run(main())

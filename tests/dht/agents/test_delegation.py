"""What travels with a task: who may pass it on, how often, and what a caller that lies about it gains: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.delegation import (
    BUDGET_PARTS,
    MAX_BUDGET,
    MAX_HOPS,
    Delegation,
    NextAsk,
    current_delegation,
    within,
)
from dht.exceptions import DelegationExhausted
from synapse_p2p.exceptions import CallError, Timeout
from synapse_p2p.messages import Code, Refusal
from synapse_p2p.protocol.session import MAX_DEADLINE_MS
from synapse_p2p.protocol.wire import pack

IDS = [bytes([number]) * 32 for number in range(1, 40)]
US, ANN, BOB, CARL = IDS[:4]
NOW = 1000.0


def envelope(**changes: Any) -> dict[str, Any]:
    return {"hops": 5, "path": [BOB, ANN], "budget": 100} | changes


def receive(value: Any, *, peer: bytes | None = ANN, **options: Any) -> Delegation | Refusal:
    return Delegation.received(value, peer=peer, own_id=US, now=NOW, **options)


def accepted(value: Any, **options: Any) -> Delegation:
    received = receive(value, **options)
    assert isinstance(received, Delegation), received
    return received


def refused(value: Any, **options: Any) -> Refusal:
    received = receive(value, **options)
    assert isinstance(received, Refusal), received
    return received


def test_whoever_receives_a_task_takes_one_hop_and_one_ask_of_it():
    delegation = accepted(envelope(), deadline=NOW + 9)

    assert (delegation.hops, delegation.budget) == (4, 99)
    assert delegation.path == (BOB, ANN, US)
    assert delegation.deadline == NOW + 9


def test_what_is_passed_on_says_who_passes_it_on():
    delegation = accepted(envelope())

    ask = delegation.for_next_ask(US)

    assert ask == NextAsk(4, (BOB, ANN, US), 25)
    assert ask.options() == {"delegation": {"hops": 4, "path": [BOB, ANN, US], "budget": 25}}
    assert delegation.budget == 99 - 25


def test_a_tree_that_begins_gives_a_quarter_of_its_asks_to_the_first():
    assert Delegation().for_next_ask(US).options() == {
        "delegation": {"hops": MAX_HOPS, "path": [US], "budget": MAX_BUDGET // BUDGET_PARTS}
    }


@pytest.mark.parametrize(("peer", "path"), [(ANN, (ANN, US)), (None, (US,))])
def test_a_caller_without_an_envelope_begins_a_tree(peer: bytes | None, path: tuple[bytes, ...]):
    delegation = accepted(None, peer=peer)

    assert (delegation.hops, delegation.budget, delegation.path) == (MAX_HOPS - 1, MAX_BUDGET - 1, path)


def test_a_task_that_we_passed_on_ourselves_is_a_loop_unless_its_handler_takes_questions_back():
    circle = envelope(path=[US, BOB, ANN])

    refusal = refused(circle)

    assert refusal.code is Code.LOOP
    assert "circles" in refusal.message
    assert refusal.details == {"may_have_started": False}
    assert accepted(circle, is_reentrant=True).path == (US, BOB, ANN, US)


# A caller that lies


@pytest.mark.parametrize(("said", "counted"), [(10**9, MAX_HOPS - 1), (2**63, MAX_HOPS - 1), (9, 7), (8, 7), (1, 0)])
def test_more_hops_than_the_bound_count_as_the_bound(said: int, counted: int):
    assert accepted(envelope(hops=said, path=[ANN])).hops == counted


def test_hops_that_do_not_agree_with_the_path_are_those_that_the_path_leaves():
    path = [*IDS[5:10], ANN]

    assert accepted(envelope(hops=MAX_HOPS, path=path)).hops == MAX_HOPS - len(path)


@pytest.mark.parametrize("said", [10**9, 2**64 - 1, MAX_BUDGET + 1])
def test_a_larger_budget_than_the_bound_counts_as_the_bound(said: int):
    assert accepted(envelope(budget=said)).budget == MAX_BUDGET - 1


@pytest.mark.parametrize("what", ["hops", "budget"])
@pytest.mark.parametrize("left", [0, -1, -(2**63)])
def test_a_task_with_nothing_left_is_refused_before_it_starts(what: str, left: int):
    refusal = refused(envelope(**{what: left}))

    assert refusal.code is Code.EXHAUSTED
    assert f"no {what} left" in refusal.message
    assert refusal.details == {"may_have_started": False, "what": what}


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ("no map", "is a map"),
        ([8, [ANN], 1], "is a map"),
        (True, "is a map"),
        ({}, "whole numbers"),
        (envelope(hops=1.5), "whole numbers"),
        (envelope(hops=True), "whole numbers"),
        (envelope(budget="9"), "whole numbers"),
        (envelope(budget=None), "whole numbers"),
        (envelope(path=None), "a list of 1 to 8 ids"),
        (envelope(path=ANN), "a list of 1 to 8 ids"),
        (envelope(path=[]), "a list of 1 to 8 ids"),
        (envelope(path=[ANN] * 9), "a list of 1 to 8 ids"),
        (envelope(path=[ANN] * 10**6), "a list of 1 to 8 ids"),
        (envelope(path=[ANN.hex(), ANN]), "is 32 bytes"),
        (envelope(path=[ANN[:31], ANN]), "is 32 bytes"),
        (envelope(path=[None, ANN]), "is 32 bytes"),
        (envelope(path=[ANN, BOB]), "ends with the id of its caller"),
        (envelope(path=[US]), "ends with the id of its caller"),
    ],
)
def test_an_envelope_of_another_shape_is_refused_and_begins_no_tree(bad: Any, text: str):
    refusal = refused(bad)

    assert refusal.code is Code.BAD_REQUEST
    assert text in refusal.message


def test_a_caller_that_leaves_itself_out_is_refused():
    assert refused(envelope(path=[BOB])).code is Code.BAD_REQUEST
    assert refused(envelope(path=[BOB]), peer=None).code is Code.BAD_REQUEST


def test_what_a_later_release_adds_is_ignored():
    assert accepted(envelope(priority=3)).path == accepted(envelope()).path


def test_a_deadline_that_has_passed_is_refused_before_work_starts():
    refusal = refused(envelope(), deadline=NOW)

    assert refusal.code is Code.DEADLINE_EXCEEDED
    assert refusal.details == {"may_have_started": False}


def test_a_deadline_only_ever_shortens_what_an_ask_is_given():
    ten_years = accepted(envelope(), deadline=NOW + MAX_DEADLINE_MS / 1000)
    soon = accepted(envelope(), deadline=NOW + 5)

    assert ten_years.shortened_s(600, NOW) == 600
    assert accepted(envelope()).shortened_s(600, NOW) == 600
    assert soon.shortened_s(600, NOW + 2) == 3
    assert soon.shortened_s(1, NOW + 2) == 1
    with pytest.raises(Timeout, match="no time left"):
        soon.shortened_s(600, NOW + 5)


values = st.sampled_from(
    [None, True, -1, 2**64 - 1, -(2**63), 0.5, float("nan"), b"", ANN, "", "8", [], [[]], {}, {"hops": 1}]
)
envelopes = values | st.fixed_dictionaries(
    {
        "hops": st.integers(-2, 12) | values,
        "path": st.lists(st.sampled_from(IDS), max_size=10) | values,
        "budget": st.integers(-2, 2000) | values,
    }
)


@given(envelopes, st.sampled_from([*IDS[:6], None]), st.none() | st.floats(NOW - 5, NOW + 5), st.booleans())
def test_nobody_gains_more_than_one_that_begins_a_tree(
    value: Any, peer: bytes | None, deadline: float | None, is_reentrant: bool
):
    received = receive(value, peer=peer, deadline=deadline, is_reentrant=is_reentrant)

    if isinstance(received, Refusal):
        assert len(pack({"details": received.details, "message": received.message})) < 500
        return
    assert 0 <= received.hops < MAX_HOPS
    assert 0 <= received.budget < MAX_BUDGET
    assert received.path[-1] == US
    assert received.hops + len(received.path) <= MAX_HOPS + 1
    assert deadline is None or deadline > NOW
    if peer is not None:
        assert received.path[-2] == peer
    assert is_reentrant or US not in received.path[:-1]


# Passing it on


def test_a_task_that_is_passed_on_again_and_again_ends_after_eight_hops():
    delegation = Delegation(budget=MAX_BUDGET)
    peers = IDS[10:30]
    hops = 0
    while delegation.hops:
        ask = delegation.for_next_ask(peers[hops], budget=MAX_BUDGET)
        received = Delegation.received(ask.options()["delegation"], peer=peers[hops], own_id=peers[hops + 1], now=0)
        assert isinstance(received, Delegation)
        delegation, hops = received, hops + 1

    assert hops == MAX_HOPS
    with pytest.raises(DelegationExhausted, match="passed on 8 times") as raised:
        delegation.for_next_ask(peers[hops])
    assert raised.value.reason == "no_hops"
    assert isinstance(raised.value, CallError)


@given(st.integers(1, MAX_BUDGET), st.lists(st.none() | st.integers(1, 50), max_size=60), st.data())
def test_a_tree_never_has_more_asks_than_its_budget(budget: int, wanted: list[int | None], data: st.DataObject):
    """A whole tree, each ask of which is answered by one that asks on as it likes."""
    made = 0
    tasks = [Delegation(hops=MAX_HOPS, budget=budget)]
    for share in wanted:
        asker = data.draw(st.sampled_from(tasks))
        own_id = IDS[20] if not asker.path else asker.path[-1]
        try:
            ask = asker.for_next_ask(own_id, budget=share)
        except DelegationExhausted:
            assert not asker.budget or not asker.hops
            continue
        made += 1
        assert 1 <= ask.budget <= (share or MAX_BUDGET)
        assert asker.budget >= 0
        received = Delegation.received(ask.options()["delegation"], peer=own_id, own_id=IDS[made % 10], now=0)
        if isinstance(received, Delegation):
            tasks.append(received)
        elif data.draw(st.booleans()):
            asker.take_back(ask)
            made -= 1
    assert made + sum(task.budget for task in tasks) <= budget


def test_a_full_budget_is_enough_for_a_handler_that_asks_many_and_for_a_chain():
    wide, asks = Delegation(), 0
    while wide.budget:
        wide.for_next_ask(US)
        asks += 1
    left, chain = MAX_BUDGET, 0
    while left:
        left, chain = Delegation(budget=left).for_next_ask(US).budget - 1, chain + 1

    assert (asks, chain) == (22, 5)


def test_of_parallel_asks_each_has_its_share_before_it_is_sent():
    delegation = Delegation(budget=8)

    shares = [delegation.for_next_ask(US).budget for _ in range(6)]

    assert shares == [2, 2, 1, 1, 1, 1]
    with pytest.raises(DelegationExhausted, match="are spent") as raised:
        delegation.for_next_ask(US)
    assert raised.value.reason == "no_budget"


def test_whether_more_may_be_asked_is_said_without_taking_anything():
    delegation = Delegation(budget=1)

    delegation.check_may_ask(US)

    assert delegation.budget == 1


def test_a_handler_that_asks_through_another_swarm_is_named_in_the_path_and_so_is_that():
    delegation = accepted(envelope(path=[ANN]))

    assert delegation.for_next_ask(CARL).path == (ANN, US, CARL)


def test_what_is_logged_of_it_is_short():
    assert repr(accepted(envelope())) == "Delegation(hops=4, budget=99, path=03030303 > 02020202 > 01010101)"


# Through a user's handler


async def test_it_is_there_within_the_handler_and_in_what_it_starts_and_nowhere_else():
    delegation = Delegation()
    in_thread: list[Delegation | None] = []

    async def look() -> Delegation | None:
        return current_delegation()

    async def handler() -> list[Delegation | None]:
        with within(delegation):
            await asyncio.sleep(0)
            await asyncio.to_thread(lambda: in_thread.append(current_delegation()))
            started = asyncio.ensure_future(look())
            return [current_delegation(), *await asyncio.gather(started, look())]

    other = asyncio.ensure_future(look())
    found = await handler()

    assert found == [delegation] * 3
    assert in_thread == [delegation]
    assert await other is None
    assert current_delegation() is None


async def test_a_task_that_outlives_its_handler_stays_a_part_of_it():
    delegation = Delegation()

    async def ask_later() -> Delegation | None:
        await asyncio.sleep(0)
        return current_delegation()

    with within(delegation):
        left_behind = asyncio.ensure_future(ask_later())

    assert await left_behind is delegation


def test_within_another_task_there_is_the_inner_one_until_it_is_left():
    outer, inner = Delegation(), Delegation()

    with within(outer):
        with contextlib.suppress(ValueError), within(inner):
            assert current_delegation() is inner
            raise ValueError
        assert current_delegation() is outer


def test_a_thread_of_nobodys_has_none():
    found: list[Delegation | None] = []
    with within(Delegation()):
        thread = threading.Thread(target=lambda: found.append(current_delegation()))
        thread.start()
        thread.join()

    assert found == [None]

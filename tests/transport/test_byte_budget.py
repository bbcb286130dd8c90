from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.transport.byte_budget import FREE_BYTES, ByteBudget


class Holder:
    """Somebody with a session."""

    def wake(self) -> None:
        """Go on."""


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=40))
def test_it_is_over_while_the_last_notes_of_all_add_up_to_more(steps: list[tuple[int, int]]):
    budget = ByteBudget(max_bytes=5)
    holders = [Holder() for _ in range(5)]
    held = dict.fromkeys(range(5), 0)
    for number, size_bytes in steps:
        budget.note(holders[number], FREE_BYTES + size_bytes)
        held[number] = size_bytes

        assert budget.is_over == (sum(held.values()) > 5)


def test_whoever_waits_is_woken_once_when_others_have_let_go():
    budget, one, other, woken = ByteBudget(max_bytes=5), Holder(), Holder(), []
    budget.note(one, FREE_BYTES + 3)
    budget.note(other, FREE_BYTES + 3)

    assert budget.has_to_wait(one, woken.append)
    assert not budget.has_to_wait(Holder(), woken.append)  # who holds nothing
    budget.note(other, 0)
    budget.note(other, 0)

    assert woken == [one]
    assert not budget.has_to_wait(one, woken.append)


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_session_that_is_forgotten_counts_no_more(is_waiting: bool):
    budget, one, forgotten = ByteBudget(max_bytes=5), Holder(), Holder()
    budget.note(one, FREE_BYTES + 1)
    budget.note(forgotten, FREE_BYTES + 9)
    assert budget.is_over
    if is_waiting:
        assert budget.has_to_wait(forgotten, Holder.wake)

    del forgotten
    gc.collect()
    budget.note(one, FREE_BYTES + 2)

    assert not budget.is_over

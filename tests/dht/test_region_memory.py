"""Which records have lost too many storers since their last copy."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dht.region_memory import RegionMemory

QUARTER = 0.25


def ids(*numbers: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in numbers]


def test_a_record_is_urgent_once_a_quarter_of_its_storers_are_gone():
    memory = RegionMemory(lost_part=QUARTER, max_storers=60)
    memory.remember("a", ids(*range(20)))

    for count, storer in enumerate(ids(*range(5)), 1):
        assert memory.urgent() == []
        memory.on_gone(storer)
        memory.check_invariants()
        assert bool(memory.urgent()) == (count == 5)
    assert memory.urgent() == ["a"]


def test_a_storer_counts_once_however_often_it_goes():
    memory = RegionMemory(lost_part=QUARTER, max_storers=60)
    memory.remember("a", ids(*range(8)))

    for _ in range(5):
        memory.on_gone(ids(3)[0])

    assert memory.urgent() == []


def test_a_copy_begins_anew_and_what_is_forgotten_is_never_urgent():
    memory = RegionMemory(lost_part=QUARTER, max_storers=60)
    memory.remember("a", ids(1, 2))
    memory.on_gone(ids(1)[0])
    assert memory.urgent() == ["a"]

    memory.remember("a", ids(2, 3, 4, 5))
    assert memory.urgent() == []
    memory.forget("a")
    memory.on_gone(ids(2)[0])

    assert (memory.urgent(), len(memory)) == ([], 0)


STORERS = st.lists(st.integers(0, 12), max_size=9, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("remember"), st.integers(0, 5), STORERS),
        st.tuples(st.just("forget"), st.integers(0, 5), st.none()),
        st.tuples(st.just("gone"), st.integers(0, 12), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=200)
@given(STEPS)
def test_it_agrees_with_counting_every_time(steps: list[tuple[str, int, list[int] | None]]):
    memory = RegionMemory(lost_part=QUARTER, max_storers=6)
    model: dict[int, tuple[int, set[int]]] = {}  # how many there were, and who is left
    for what, number, storers in steps:
        if what == "remember":
            assert storers is not None
            memory.remember(number, ids(*storers))
            model[number] = (len(storers[:6]), set(storers[:6]))
        elif what == "forget":
            memory.forget(number)
            model.pop(number, None)
        else:
            memory.on_gone(ids(number)[0])
            for _, left in model.values():
                left.discard(number)
        memory.check_invariants()
        expected = {held for held, (count, left) in model.items() if count and count - len(left) >= QUARTER * count}
        assert set(memory.urgent()) == expected

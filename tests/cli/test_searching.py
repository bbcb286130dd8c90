"""What is said where nobody was found, what is an address or an id, and what cannot be said of one."""

from __future__ import annotations

import pytest

from synapse_p2p.apps.cli.asking import check_asked
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.searching import Wanted, check_found, is_place
from synapse_p2p.apps.cli.settings import Settings


def test_where_nobody_is_found_the_next_command_asks_for_the_same_and_can_be_typed():
    wanted = Wanted(("parser>=2,<3", "python"))

    with pytest.raises(CommandError, match="nobody offers parser>=2,<3, python, as far as could be seen: late") as end:
        check_found({"agents": [], "complete": False, "reason": "late"}, wanted, Settings(network="lab"))

    assert end.value.code is ExitCode.NOTHING_FOUND
    assert end.value.next_commands == ("find 'parser>=2,<3' python --explain --network lab", "status --network lab")


def test_where_nobody_is_found_through_a_seed_the_seed_is_looked_at_next():
    with pytest.raises(CommandError) as end:
        check_found({"agents": [], "complete": True, "reason": ""}, Wanted(("x",)), Settings(("a:1",)))

    assert end.value.next_commands == ("find x --explain --seed a:1", "doctor --seed a:1")


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        ("127.0.0.1:9999", True),
        ("ab" * 32 + "@127.0.0.1:9999", True),
        ("ab" * 32, True),
        ("zz" * 32, False),
        ("nlp/translation", False),
        ("a:b:c", False),
    ],
)
def test_an_address_and_an_id_are_places_and_a_capability_is_none(target: str, is_one: bool):
    assert is_place(target) is is_one


@pytest.mark.parametrize(("is_idempotent", "budget"), [(True, None), (False, 5), (True, 5)])
def test_what_is_said_of_several_providers_is_refused_where_one_is_asked(is_idempotent: bool, budget: int | None):
    check_asked("code-review", is_idempotent=is_idempotent, budget=budget)
    check_asked("127.0.0.1:9999", is_idempotent=False, budget=None)

    with pytest.raises(CommandError, match=r"127.0.0.1:9999 is one agent") as end:
        check_asked("127.0.0.1:9999", is_idempotent=is_idempotent, budget=budget)

    assert end.value.code is ExitCode.USAGE

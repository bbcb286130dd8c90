from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p.access import (
    ALLOWED,
    MAX_LOGGED_CHARS,
    REFUSALS_LOGGED_AT_ONCE,
    REFUSALS_LOGGED_PER_S,
    Audience,
    EndpointAccess,
    LogBudget,
    access_of,
    checked_ids,
    checked_rule,
    decide,
)
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError

ANN, BOB = b"a" * 32, b"b" * 32


def caller(peer: bytes | None) -> CallContext:
    return CallContext(peer=peer, address="192.0.2.7:4000")


def is_allowed(access: EndpointAccess, peer: bytes | None = ANN, **options: Any) -> bool:
    settings: dict[str, Any] = {"server_rule": None, "operators": (), "is_local": False} | options
    return decide(access, caller(peer), **settings).is_allowed


# The table


def expected(
    *,
    audience: Audience,
    is_open: bool,
    own: Any,
    servers: Any,
    peer: bytes | None,
    is_operator: bool,
    is_local: bool,
) -> bool:
    """The rules of the table, each in the words of the manual."""
    if audience is Audience.EVERY_NODE:
        return True
    if audience is Audience.OPERATORS:
        return is_operator and peer is not None
    named_by = own if own is not None else servers
    if named_by == "operators":
        return is_operator and peer is not None
    if named_by is not None:
        return named_by == "anyone" or (peer is not None and peer in named_by)
    is_plain = peer is None
    return is_plain or is_local or is_open


RULES = st.sampled_from(
    [None, "anyone", "operators", frozenset(), frozenset({ANN}), frozenset({BOB}), frozenset({ANN, BOB})]
)


@given(
    audience=st.sampled_from(Audience),
    is_open=st.booleans(),
    own=RULES,
    servers=RULES,
    as_functions=st.booleans(),
    peer=st.sampled_from([None, ANN, BOB]),
    is_operator=st.booleans(),
    is_local=st.booleans(),
)
def test_every_case_is_decided_as_the_table_has_it(
    audience: Audience,
    is_open: bool,
    own: Any,
    servers: Any,
    as_functions: bool,
    peer: bytes | None,
    is_operator: bool,
    is_local: bool,
):
    def given_as(rule: Any) -> Any:
        if rule in (None, "anyone", "operators") or not as_functions:
            return rule
        return lambda context: context.peer in rule

    decision = decide(
        EndpointAccess(audience, is_open, given_as(own)),
        caller(peer),
        server_rule=given_as(servers),
        operators={peer} if is_operator and peer is not None else {b"o" * 32},
        is_local=is_local,
    )

    assert decision.error is None
    assert (decision.reason == "") == decision.is_allowed
    assert decision.is_allowed == expected(
        audience=audience,
        is_open=is_open,
        own=own,
        servers=servers,
        peer=peer,
        is_operator=is_operator,
        is_local=is_local,
    )


@pytest.mark.parametrize(
    "name",
    [
        "_synapse.ping",
        "_synapse.info",
        "_agent.info",
        "_agent.capabilities",
        "_node.info",
        "_dht.find_node",
        "_swarm.x",
    ],
)
def test_what_others_need_to_find_a_node_is_open_whatever_the_server_allows(name: str):
    access = access_of(name, publish=False)

    assert is_allowed(access, server_rule=frozenset())


@pytest.mark.parametrize("name", ["_agent.ask", "_agent.stream_ask", "_node.ask"])
def test_asks_are_open_to_every_node_until_the_server_names_who(name: str):
    access = access_of(name, publish=False)

    assert is_allowed(access)
    assert is_allowed(access, server_rule=frozenset({ANN}))
    assert not is_allowed(access, BOB, server_rule=frozenset({ANN}))


def test_an_endpoint_for_operators_takes_no_other_rule():
    access = access_of("_synapse.stats", publish=False, for_operators=True)

    assert is_allowed(access, ANN, operators={ANN}, server_rule=frozenset())
    assert not is_allowed(access, BOB, operators={ANN}, server_rule="anyone", is_local=True)
    assert not is_allowed(access, None, operators={ANN}, is_local=True)


def test_operators_have_no_other_privilege():
    assert not is_allowed(EndpointAccess(is_open=False), ANN, operators={ANN})
    assert not is_allowed(EndpointAccess(), ANN, operators={ANN}, server_rule=frozenset({BOB}))


# Functions


def test_a_function_that_raises_lets_nobody_in_and_its_error_is_kept():
    def broken(context: CallContext) -> bool:
        raise LookupError("canary")

    decision = decide(EndpointAccess(rule=broken), caller(ANN), server_rule="anyone", operators=(), is_local=True)

    assert not decision.is_allowed
    assert isinstance(decision.error, LookupError)
    assert "canary" not in decision.reason


async def _coroutine(context: CallContext) -> bool:
    return True


@pytest.mark.parametrize("answer", [None, 1, 0, "yes", [ANN], NotImplemented, _coroutine])
def test_an_answer_that_is_neither_true_nor_false_lets_nobody_in(answer: Any):
    def rule(context: CallContext) -> Any:
        return answer(context) if answer is _coroutine else answer

    decision = decide(EndpointAccess(rule=rule), caller(ANN), server_rule=None, operators=(), is_local=True)

    assert not decision.is_allowed
    assert isinstance(decision.error, TypeError)


def test_a_function_sees_the_context_of_the_call():
    seen: list[CallContext] = []
    context = caller(ANN)

    decision = decide(
        EndpointAccess(rule=lambda got: seen.append(got) or True),
        context,
        server_rule=None,
        operators=(),
        is_local=False,
    )

    assert decision is ALLOWED
    assert seen == [context]


# What users write


@pytest.mark.parametrize("ids", [[ANN], (ANN.hex(),), {ANN: "Ann"}, frozenset({ANN}), iter([ANN.hex().upper()])])
def test_ids_are_bytes_or_hexadecimal_digits_in_any_collection(ids: Iterable[bytes | str]):
    assert checked_rule(ids) == frozenset({ANN})


@pytest.mark.parametrize("allow", [lambda context: True, functools.partial(lambda a, b: a, True), bool])
def test_any_plain_function_of_the_context_is_a_rule(allow: Callable[..., Any]):
    assert checked_rule(allow) is allow


class AsyncObject:
    async def __call__(self, context: CallContext) -> bool:
        return True


@pytest.mark.parametrize(
    ("allow", "words"),
    [
        ("everyone", r"write allow=\[node_id\] for a single one"),
        (ANN.hex(), r"write allow=\[node_id\] for a single one"),
        (ANN, r"write allow=\[node_id\] for a single one"),
        (True, "names nobody"),
        (7, "names nobody"),
        ([b"short"], "a node id is 32 bytes"),
        ([7], "a node id is 32 bytes"),
        (["abc"], "64 hexadecimal digits"),
        (lambda: True, r"called as allow\(call_context\)"),
        (lambda a, b: True, r"called as allow\(call_context\)"),
        (_coroutine, "async function"),
        (AsyncObject(), "async function"),
    ],
)
def test_what_names_nobody_is_refused_in_a_sentence(allow: Any, words: str):
    with pytest.raises(ConfigError, match=words):
        checked_rule(allow)


def test_the_error_speaks_of_the_argument_that_is_wrong():
    with pytest.raises(ConfigError, match=r"^operators=b'a+.* is no collection; write operators=\[node_id\]"):
        checked_ids(ANN, named="operators")
    with pytest.raises(ConfigError, match=r"^operators= holds None"):
        checked_ids([None], named="operators")  # type: ignore[list-item]


# How much is logged


@given(st.lists(st.floats(0, 200), max_size=400))
def test_lines_keep_to_the_budget_and_every_refusal_is_counted_once(pauses: list[float]):
    now, budget, lines, counted = 0.0, LogBudget(0.0), 0, 0

    for pause in pauses:
        now += pause / 100
        left_out = budget.take_line(now)
        if left_out is not None:
            lines += 1
            counted += 1 + left_out

        assert lines <= REFUSALS_LOGGED_AT_ONCE + now * REFUSALS_LOGGED_PER_S + 1e-6
    assert counted + budget.take_left_out() == len(pauses)
    assert budget.take_left_out() == 0


def test_a_flood_gets_its_burst_and_then_a_line_a_second():
    budget = LogBudget(0.0)

    at_once = [budget.take_line(0.0) for _ in range(1000)]
    later = [budget.take_line(1.0 + index / 1000) for index in range(999)]

    assert at_once == [0] * REFUSALS_LOGGED_AT_ONCE + [None] * 900
    assert later == [900] + [None] * 998
    assert MAX_LOGGED_CHARS < 100

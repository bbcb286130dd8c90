"""Who may call what: the rules behind `allow=`, `publish=` and `operators=`, and how much of a refusal is logged.

Owns the decision, not the answer that a refused caller gets nor the line in the log. Pure. In this order:

    an endpoint that nodes need to find and reach each other     every caller
    one for operators                                            `operators=` alone, wherever they call from
    one with an `allow=` of its own, else one of a server with   whom that names, wherever they call from; "operators"
                                                                 are those of the server
    any other, where the caller is local or plain                every caller, as in release 1.3
    any other, published                                         every node of the network
    any other, unpublished                                       nobody
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypeAlias

from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID, checked_node_id

ANYONE: Literal["anyone"] = "anyone"
OPERATORS: Literal["operators"] = "operators"
PACKAGE_PREFIXES = ("_synapse.", "_agent.", "_node.", "_dht.", "_swarm.")
TASK_ENDPOINTS = frozenset({"_agent.ask", "_agent.stream_ask", "_node.ask"})  # what they run is the user's

REFUSALS_LOGGED_AT_ONCE = 100  # one line each; after these a line at the rate below, with the count of the others
REFUSALS_LOGGED_PER_S = 1.0  # under 20 MB a day, however many are refused
MAX_LOGGED_CHARS = 64  # of an endpoint's name, which a stranger chose

AskCaller: TypeAlias = Callable[[CallContext], bool]
Allow: TypeAlias = Literal["anyone", "operators"] | Iterable[NodeID | str] | AskCaller
"""What a user may give as `allow=`: ids as 32 bytes or 64 hexadecimal digits, or a plain function that is quick."""
Rule: TypeAlias = Literal["anyone", "operators"] | frozenset[NodeID] | AskCaller
"""The same, checked."""


class Audience(Enum):
    """For whom an endpoint is there at all."""

    EVERY_NODE = "every node"  # others need it to find and reach this one
    CALLERS = "callers"  # the user's: rules hold
    OPERATORS = "operators"


@dataclass(frozen=True, slots=True)
class EndpointAccess:
    """What is said about one endpoint. `is_open`: without any rule, every node of the network may call it."""

    audience: Audience = Audience.CALLERS
    is_open: bool = True
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a call may run. A no has its reason, for our log, and what a user's function raised instead of an
    answer.
    """

    is_allowed: bool
    reason: str = ""
    error: BaseException | None = None


ALLOWED = Decision(is_allowed=True)
NOT_NAMED = Decision(is_allowed=False, reason="allow= does not name the caller")
UNPUBLISHED = Decision(is_allowed=False, reason="not published")
NO_OPERATOR = Decision(is_allowed=False, reason="for operators alone")


def access_of(name: str, *, publish: bool, allow: Allow | None = None, for_operators: bool = False) -> EndpointAccess:
    """The access of an endpoint that is registered with these. Raises ConfigError for an `allow` that is none."""
    rule = None if allow is None else checked_rule(allow)
    if for_operators:
        return EndpointAccess(Audience.OPERATORS, is_open=False)
    if name in TASK_ENDPOINTS:
        return EndpointAccess(Audience.CALLERS, is_open=True, rule=rule)
    if name.startswith(PACKAGE_PREFIXES):
        return EndpointAccess(Audience.EVERY_NODE)
    return EndpointAccess(Audience.CALLERS, is_open=publish, rule=rule)


def decide(
    access: EndpointAccess,
    context: CallContext,
    *,
    server_rule: Rule | None,
    operators: Collection[NodeID],
    is_local: bool,
) -> Decision:
    """Whether this caller may call this endpoint, by the table above. Raises nothing, whatever the user's rule does."""
    if access.audience is Audience.EVERY_NODE:
        return ALLOWED
    if access.audience is Audience.OPERATORS:
        return ALLOWED if context.peer in operators else NO_OPERATOR
    rule = server_rule if access.rule is None else access.rule
    if rule == OPERATORS:
        return ALLOWED if context.peer in operators else NO_OPERATOR
    if rule is not None:
        return _judge(rule, context)
    return ALLOWED if access.is_open or is_local or context.peer is None else UNPUBLISHED


def checked_rule(allow: Allow) -> Rule:
    """An `allow=` as a rule; a collection is read once, now. Raises ConfigError for anything that is none."""
    if isinstance(allow, str) and allow == ANYONE:
        return ANYONE
    if isinstance(allow, str) and allow == OPERATORS:
        return OPERATORS
    if isinstance(allow, Iterable):
        return checked_ids(allow, named="allow")
    if not callable(allow):
        raise ConfigError(
            f'allow={allow!r:.80} names nobody; give "anyone", "operators", a collection of '
            "node ids, or a function of the CallContext"
        )
    if inspect.iscoroutinefunction(allow) or inspect.iscoroutinefunction(getattr(allow, "__call__", None)):  # noqa: B004
        raise ConfigError("allow= is an async function; who may call is decided at once, by a plain one")
    try:
        inspect.signature(allow).bind(None)
    except TypeError as error:
        raise ConfigError(f"allow= is called as allow(call_context), and this function cannot be: {error}") from error
    except ValueError:
        pass  # some of those written in C do not say what they take
    return allow


def checked_ids(ids: Iterable[NodeID | str], *, named: str) -> frozenset[NodeID]:
    """Ids as 32 bytes or 64 hexadecimal digits. Raises ConfigError, about the argument `named`, for anything else."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        also = ', "anyone", "operators", or a function of the CallContext' if named == "allow" else ""
        raise ConfigError(f"{named}={ids!r:.80} is no collection; write {named}=[node_id] for a single one{also}")
    return frozenset(checked_node_id(each, named=named) for each in ids)


class LogBudget:
    """How many lines a flood of refusals may write: a burst, then a rate, and a count of what was left out.

    Invariant: in any `t` seconds at most `REFUSALS_LOGGED_AT_ONCE + t * REFUSALS_LOGGED_PER_S` lines.
    """

    def __init__(self, now: float) -> None:
        self._lines_left = float(REFUSALS_LOGGED_AT_ONCE)
        self._counted_at = now
        self._left_out = 0

    def take_line(self, now: float) -> int | None:
        """How many refusals were left out since the last line, if there is a line for this one; else None."""
        earned = (now - self._counted_at) * REFUSALS_LOGGED_PER_S
        self._lines_left = min(REFUSALS_LOGGED_AT_ONCE, self._lines_left + earned)
        self._counted_at = now
        if self._lines_left < 1:
            self._left_out += 1
            return None
        self._lines_left -= 1
        return self.take_left_out()

    def take_left_out(self) -> int:
        """How many were left out and not told of yet; they count as told."""
        left_out, self._left_out = self._left_out, 0
        return left_out


def _judge(rule: Rule, context: CallContext) -> Decision:
    if isinstance(rule, frozenset):
        return ALLOWED if context.peer in rule else NOT_NAMED
    if isinstance(rule, str):
        return ALLOWED
    try:
        answer: Any = rule(context)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # one that cancels would leave the caller without an answer
        return Decision(is_allowed=False, reason="its allow= failed", error=error)
    if answer is True or answer is False:
        return ALLOWED if answer else NOT_NAMED
    if inspect.iscoroutine(answer):
        answer.close()  # nobody will await it
    # Nearly everything is true to Python, a coroutine and an error object included: that must let nobody in.
    error = TypeError(f"allow= returned a value of type {type(answer).__name__}, not True or False")
    return Decision(is_allowed=False, reason="its allow= failed", error=error)

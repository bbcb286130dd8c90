"""The guard of a server: turns away those who may not call, and says so, to them and in the log.

Who may call what is decided in `access.py`. Its lines go to the logger `synapse_p2p.access` at level INFO, and never
more of them than a `LogBudget` has.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Set

from synapse_p2p.access import (
    MAX_LOGGED_CHARS,
    Allow,
    Audience,
    Decision,
    EndpointAccess,
    LogBudget,
    checked_rule,
    decide,
)
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import EndpointDirectory
from synapse_p2p.identity import NodeID
from synapse_p2p.messages import Code, Refusal
from synapse_p2p.runtime import Runtime
from synapse_p2p.transport.base import is_loopback, parse_address

logger = logging.getLogger("synapse_p2p.access")

_CALLERS = Audience.CALLERS  # in Python 3.11 finding a member in its class takes ten times as long as reading a name


class Guard:
    """Asked before anything is done for a call: before its arguments are matched to a function, and before it takes a
    task's place.

    `is_on_loopback`: nobody from another machine reaches the server by itself; so too while it has never listened.
    """

    def __init__(
        self, endpoints: EndpointDirectory, *, allow: Allow | None, operators: Set[NodeID], runtime: Runtime
    ) -> None:
        """`operators` may change as time goes by. Raises ConfigError for an `allow` that is none."""
        self.is_on_loopback = True
        self._endpoints = endpoints
        self._rule = None if allow is None else checked_rule(allow)
        self._operators = operators
        self._runtime = runtime
        self._log_budget = LogBudget(runtime.now())
        self._failed: set[str] = set()  # endpoints whose rule broke, and was told of

    def refusal_of(self, name: str, context: CallContext) -> Refusal | None:
        """What a caller that may not make this call is told; None for one that may. Every refusal has its line.

        Endpoints that are unknown, or mounted, are nobody's to refuse: the first end as `not_found`, the others are for
        every node.
        """
        access = self._endpoints.access_of(name)
        if access is None:
            return None
        if access.is_open and access.rule is None and self._rule is None and access.audience is _CALLERS:
            return None  # as `decide` would say; most endpoints are so, and it takes 1 us of 30
        decision = self._decide(name, access, context)
        if decision.is_allowed:
            return None
        self.note_refusal(name, context.peer, context.address, decision.reason)
        if access.audience is Audience.OPERATORS:
            return Refusal(Code.FORBIDDEN, f"{name} is for operators alone: its server names them with operators=")
        return Refusal(Code.FORBIDDEN, f"{name} is not open to you: its server names who may call it with allow=")

    def is_hidden(self, name: str, context: CallContext) -> bool:
        """Whether an endpoint is neither listed for all nor open to this caller."""
        access = self._endpoints.access_of(name)
        if access is None or self._endpoints.is_published(name):
            return False
        return not self._decide(name, access, context).is_allowed

    def note_refusal(self, name: str, peer: NodeID | None, address: str, reason: str) -> None:
        """A line for whoever watches the door. `name` is empty where the request was not even read."""
        left_out = self._log_budget.take_line(self._runtime.now())
        if left_out is None:
            return
        logger.info(
            "refused call endpoint=%r peer=%s address=%s reason=%s%s",
            name[:MAX_LOGGED_CHARS],
            "-" if peer is None else peer.hex(),
            address,
            reason,
            f" ({left_out} more since the last line)" if left_out else "",
        )

    def close_log(self) -> None:
        """Tell of the refusals that have had no line; at the end of the server."""
        if left_out := self._log_budget.take_left_out():
            logger.info("refused %d more calls since the last line", left_out)

    def _decide(self, name: str, access: EndpointAccess, context: CallContext) -> Decision:
        is_local = self.is_on_loopback and _is_from_loopback(context.address)
        decision = decide(access, context, server_rule=self._rule, operators=self._operators, is_local=is_local)
        if decision.error is not None and name not in self._failed:
            # Once: whoever calls again and again must not fill the log with it.
            self._failed.add(name)
            logger.error("the allow= of endpoint %.80s failed; it lets nobody in", name, exc_info=decision.error)
        return decision


@functools.lru_cache(maxsize=1024)  # asked for every call, about the sessions that are open
def _is_from_loopback(address: str) -> bool:
    return is_loopback(parse_address(address)[0])

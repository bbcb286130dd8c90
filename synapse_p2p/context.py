"""What a handler may know of the call it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, TypeAlias

from synapse_p2p.identity import NodeID
from synapse_p2p.protocol.wire import quick_value


@quick_value
class CallContext:
    """Who called, from where, and how long the answer is wanted.

    A handler receives it in a parameter annotated `CallContext`. `peer` is proved by the handshake; it is None for a
    plain caller, who is anonymous. `address` is where the call came from, as we saw it. `listen_address` is where the
    caller says it listens (the observed host with its announced port), None for a client; nobody has dialed it yet.
    `deadline` is on the clock of `Runtime.now`, in seconds. `traceparent` and `delegation` are the caller's word; what
    W3C does not allow as a traceparent reads as None. To the task handler and the endpoints of an agent in a swarm,
    `swarm` is that swarm, and `delegation` what it made of the caller's; to others `swarm` is None.
    """

    peer: NodeID | None
    address: str
    listen_address: str | None = None
    network: str = ""
    deadline: float | None = None
    traceparent: str | None = None
    delegation: Any = field(default=None, compare=False)
    swarm: Any = field(default=None, compare=False)


MountedHandler: TypeAlias = Callable[[Mapping[str, Any], CallContext], Any]
"""A package's endpoint: the map of named arguments and the context in, the answer out, at once."""

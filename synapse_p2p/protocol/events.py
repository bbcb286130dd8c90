"""What a session tells of: its calls and streams, and its end. Pure; `session.py` says when each happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.wire import Call, Result, quick_value

# The messages that every call takes are all there is to tell of it.
CallArrived = Call
"""Run this; answer with `answer` or `fail`."""

CallAnswered = Result
"""Our call `id` returned."""


@quick_value
class CallWithdrawn:
    """Stop running call `id`: it was cancelled or its time is up. It takes no answer any more."""

    id: int


@quick_value
class CallFailed:
    """Our call `id` did not return. `may_have_started` matters for `unavailable` alone."""

    id: int
    code: Code
    message: str
    details: Mapping[str, Any]
    may_have_started: bool = True


@quick_value
class CallExpired:
    """The deadline of our call `id` passed; the peer was told to stop."""

    id: int


@quick_value
class StreamEnded:
    """Our call `id`, whose result is a stream, has sent its last item."""

    id: int


@quick_value
class ItemsArrived:
    """There is something to read where nothing was: items, or the end of an upload."""

    id: int
    part: int


@quick_value
class CreditArrived:
    """Whoever was refused by `may_send_item` may send again."""

    id: int
    part: int


@quick_value
class PeerClosed:
    """The peer said goodbye. Close the connection."""

    code: str
    text: str


@quick_value
class PeerSilent:
    """The peer answered no ping. Close the connection."""


Event: TypeAlias = (
    CallArrived
    | CallWithdrawn
    | CallAnswered
    | CallFailed
    | CallExpired
    | StreamEnded
    | ItemsArrived
    | CreditArrived
    | PeerClosed
    | PeerSilent
)

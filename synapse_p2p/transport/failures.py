"""What the caller of a call on a session is raised, from what the session says of its end; and what is said of values
that cannot travel, at either end.
"""

from __future__ import annotations

from typing import Any

from synapse_p2p.exceptions import ConfigError, FrameTooLarge, PeerUnavailable, RemoteError, Timeout
from synapse_p2p.messages import RPCRequest, RPCResponse
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.events import CallFailed
from synapse_p2p.protocol.wire import MAX_ENDPOINT_CHARS
from synapse_p2p.schema import dump
from synapse_p2p.serializers import why_unsendable


def error_of(event: CallFailed, address: str) -> Exception:
    """The error that stands for a failed call. A failure of the peer's handler is a RemoteError in the peer's words."""
    if event.code is Code.UNAVAILABLE:
        return PeerUnavailable(f"{address}: {event.message}", may_have_started=event.may_have_started)
    if event.code is Code.DEADLINE_EXCEEDED:
        return Timeout(f"{address}: {event.message}")
    details = dict(event.details)
    return RemoteError(
        event.code,
        event.message,
        reason=_text(details.pop("reason", None)),
        reference=_text(details.pop("reference", None)),
        details=details,
    )


def unsendable(endpoint: str, args: list[Any], kwargs: dict[str, Any], error: Exception) -> ConfigError:
    """The error for arguments that cannot travel, or are too many; `error` is what packing them raised."""
    if isinstance(error, FrameTooLarge):
        return ConfigError(
            f"the arguments of {endpoint} take {error.actual_bytes} bytes; one call carries {error.limit_bytes} "
            "at most: send the data as a stream, an asynchronous iterator in the place of an argument"
        )
    problem = why_unsendable(RPCRequest(endpoint=endpoint, args=args, kwargs=kwargs)) or error
    return ConfigError(f"{endpoint} cannot be called with these arguments: {problem}")


def unsendable_item(endpoint: str, place: str | int, index: int, item: Any, error: Exception) -> ConfigError:
    """The error for an item of an upload that cannot travel, or is too large; `error` is what packing it raised."""
    which = f"item {index} of argument {place!r} of {endpoint}"
    if isinstance(error, FrameTooLarge):
        return ConfigError(
            f"{which} takes {error.actual_bytes} bytes; an item carries {error.limit_bytes} at most: send smaller ones"
        )
    problem = why_unsendable(RPCRequest(endpoint=endpoint, args=[item])) or error
    return ConfigError(f"{which} cannot be sent: {problem}")


def unsendable_result(value: Any, error: Exception) -> Exception:
    """The error to log for a result, or an item of one, that cannot travel: it names the place in it, and what to send
    instead. `error` is what packing it raised, and what is returned where that was something else.
    """
    try:
        problem = why_unsendable(RPCResponse(id="", ok=True, result=dump(value)))
    except Exception:
        return error  # raised by a class of the user's, as `error` was
    return ConfigError(problem) if problem else error


def no_endpoint(name: Any) -> ConfigError:
    """The error for a name that no endpoint can have."""
    return ConfigError(f"an endpoint's name is text of 1 to {MAX_ENDPOINT_CHARS} characters, not {name!r:.80}")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

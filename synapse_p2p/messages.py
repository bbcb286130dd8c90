"""What one call looks like: the request and response of the plain wire, and the end of a call on any wire.

Owns shapes; bytes belong to the serializers, codes to the session. The classes RPC* are those of release
1.3, and the order of their fields is the order of the keys on the wire.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from synapse_p2p.exceptions import RemoteError
from synapse_p2p.protocol.code import Code
from synapse_p2p.protocol.wire import quick_value


@dataclass(slots=True)
class RPCError:
    """Why a call failed. On the plain wire `code` is `bad_request` or `internal_error`, nothing else."""

    code: str
    message: str


@dataclass(slots=True)
class RPCRequest:
    """Please run `endpoint`. `id` is the caller's and comes back in the response."""

    endpoint: str
    id: str = ""
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    type: Literal["request"] = "request"


@dataclass(slots=True)
class RPCResponse:
    """How it went. `id` is empty when the request could not be read."""

    id: str
    ok: bool
    result: Any | None = None
    error: RPCError | None = None
    type: Literal["response"] = "response"


RemoteProcedureCall = RPCRequest
RPCMessage: TypeAlias = RPCRequest | RPCResponse


@quick_value
class Answer:
    """The call returned; a value that is an `Items` is a stream."""

    value: Any


@quick_value
class Items:
    """What a streaming endpoint gives, one by one. A failure of its own is raised as a RemoteError, fit to be told."""

    values: AsyncGenerator[Any, None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The call did not return. `message` and `details` are fit for a stranger's eyes."""

    code: Code
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_error(self) -> RemoteError:
        """What a session's call ends with."""
        return RemoteError(self.code, self.message, details=self.details)


Outcome: TypeAlias = Answer | Refusal


def code_of(outcome: Outcome | None) -> Code | None:
    """The code that a call failed with; None where it was answered. One without an outcome was cancelled."""
    if isinstance(outcome, Answer):
        return None
    return Code.CANCELLED if outcome is None else outcome.code

"""The errors of this package, by who can act on them.

    SynapseError
    |-- ConfigError          you: a wrong argument or setting (also a ValueError)
    |-- ProtocolViolation    the peer broke the rules; its connection is closed
    |   |-- InvalidMessageError   a message that is not one
    |   |   `-- InvalidAnswerError    an answer that is not one
    |   |-- FrameTooLarge         a length over the limit
    |   `-- HandshakeFailed       who the peer is could not be proved
    |-- PeerUnavailable      nobody answered; try elsewhere (also a ConnectionError)
    |-- Timeout              the time given ran out (also a TimeoutError)
    |-- RemoteError          the peer answered that it failed (also a RuntimeError)
    `-- CallError            what a handler raises to refuse a call in its own words

Callers of release 1.3 catch RuntimeError, ConnectionError and TimeoutError: they keep catching what they caught.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SynapseError(Exception):
    """The root of every error that this package raises on purpose."""


class ConfigError(SynapseError, ValueError):
    """An argument or a setting is wrong; the text says which and what to write instead."""


class ProtocolViolation(SynapseError):
    """A peer broke the rules of the wire; its connection is closed."""


class InvalidMessageError(ProtocolViolation):
    """Bytes or values that are no valid message."""


class InvalidAnswerError(InvalidMessageError):
    """What another program answered is no answer. Nothing that a caller of ours did: it is not told of it."""


class FrameTooLarge(ProtocolViolation):
    """A peer announced more bytes than the limit; nothing of it was read."""

    def __init__(self, *, limit_bytes: int, actual_bytes: int) -> None:
        super().__init__(f"frame too large: {actual_bytes} > {limit_bytes}")
        self.limit_bytes = limit_bytes
        self.actual_bytes = actual_bytes


class HandshakeFailed(ProtocolViolation):
    """The other end could not prove who it is, or is not whom we wanted.

    `reason` is one word for programs: `preamble`, `message`, `crypto`, `proof`, `self`, `identity`, `version`,
    `refused`, `plain`, `downgrade`, `timeout`, `closed`. `plain`: the other end answered as a listener of releases 1
    and 2 does, which speak the plain wire alone; nothing proves that word either. `downgrade`: so did one that spoke
    encrypted to this process before. `refusal` is the listener's word, at both ends
    (`version`, `suite`, `network`, `busy`); to a dialer it is unproved, and text for people only.
    """

    def __init__(self, reason: str, text: str, *, refusal: str | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.refusal = refusal


class PeerUnavailable(SynapseError, ConnectionError):
    """No answer is to be had from this peer now.

    `may_have_started` is False only when the request certainly never reached the peer: repeating it elsewhere is then
    safe. `was_tried` is False where nothing was sent at all, because the address failed a moment ago: no new evidence.
    """

    def __init__(self, text: str, *, may_have_started: bool = False, was_tried: bool = True) -> None:
        super().__init__(text)
        self.may_have_started = may_have_started
        self.was_tried = was_tried


class Timeout(SynapseError, TimeoutError):
    """The time given for a call ran out. The peer may have started it, unless the text says otherwise."""


class RemoteError(SynapseError, RuntimeError):
    """The peer answered, and its answer is a failure.

    `code` is one of the codes of the wire (docs/spec/wire.md). `reason` and `details` are the handler's own words where
    it raised a CallError (`code` is then `failed`); `reference` names the entry in the peer's log where it broke. Where
    the name of an endpoint is unknown, the text offers the nearest one, which is in `details`.
    Raised by a swarm's `ask`, `answer` tells which agent it was and whom else was tried.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
        reference: str | None = None,
    ) -> None:
        # Its text says both, as the one text of the plain wire does.
        text = f"{reason}: {message}" if reason and message else reason or message
        nearest = (details or {}).get("nearest") if code == "not_found" else None
        super().__init__(f"{text}; did you mean {nearest!r:.80}?" if isinstance(nearest, str) else text)
        self.code = code
        self.message = message
        self.reason = reason
        self.details = dict(details or {})
        self.reference = reference
        self.answer: Any = None


class CallError(SynapseError):
    """Raise it in a handler to refuse a call in your own words; the caller gets a RemoteError with code `failed`."""

    def __init__(self, reason: str, message: str = "", *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message
        self.details = dict(details or {})

"""How calls fail, in one word each. Pure. Layout: docs/spec/wire.md."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """How a call may fail. A code of a later release reads as `internal_error`."""

    BAD_REQUEST = "bad_request"
    NOT_FOUND = "not_found"
    FORBIDDEN = "forbidden"
    BUSY = "busy"
    TOO_LARGE = "too_large"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    INTERNAL_ERROR = "internal_error"
    LOOP = "loop"
    EXHAUSTED = "exhausted"

    @classmethod
    def read(cls, text: str) -> Code:
        """The code that a text names; `internal_error` for one that this release does not know."""
        return cls(text) if text in _CODES else cls.INTERNAL_ERROR


_CODES = frozenset(Code)

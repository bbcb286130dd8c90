"""Of which trace a call is a part: the `traceparent` that calls carry, and how it gets through a user's handler.

Owns the one ContextVar by which a trace goes from the call that came in to the calls that its handler makes; a stated
exception to "no global state". Else pure. It records nothing and begins no trace: that is for a tracer of the user's.
Source: W3C Trace Context, level 1, sections 3.2 (the header) and 4.3 (what may be changed in it).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from synapse_p2p.exceptions import ConfigError

if TYPE_CHECKING:
    from random import Random

MAX_TRACEPARENT_CHARS = 128  # of version 00 it is 55; later ones may append

_FORM = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_NO_TRACE, _NO_PARENT = "0" * 32, "0" * 16
_KNOWN_FLAGS = 0b11  # sampled, and of level 2 that the trace id is random; others are not passed on

_CARRIED: ContextVar[str | None] = ContextVar("what calls made here carry", default=None)
carried = _CARRIED.get  # as `current_traceparent`, for what is asked at every call


def is_traceparent(value: object) -> bool:
    """Whether this is one that may be believed. A version to come may say more at its end, version 00 may not."""
    if not isinstance(value, str) or len(value) > MAX_TRACEPARENT_CHARS:
        return False
    found = _FORM.fullmatch(value)
    if found is None:
        return False
    version, trace_id, parent_id, _, rest = found.groups()
    is_known = version == "00" and rest is None
    return (is_known or version not in ("00", "ff")) and trace_id != _NO_TRACE and parent_id != _NO_PARENT


def checked_traceparent(value: str) -> str:
    """The same, of our own user's. Raises ConfigError for what is none."""
    if not is_traceparent(value):
        raise ConfigError(
            f"traceparent is {value!r:.80}; W3C has it as 00-<trace id, 32 hex digits>-<parent id, 16>-<flags, 2>, in "
            "lower case and neither id all zeros"
        )
    return value


def with_new_parent(traceparent: str, rng: Random) -> str:
    """The same trace, with a parent of our own: in version 00, whatever it came in."""
    _, trace_id, _, flags = traceparent.split("-")[:4]
    return f"00-{trace_id}-{rng.randrange(1, 2**64):016x}-{int(flags, 16) & _KNOWN_FLAGS:02x}"


def current_traceparent() -> str | None:
    """What calls made here carry; None where they are part of no trace.

    In a handler whose caller sent one it is the caller's trace with a parent id that stands for this run of the
    handler: log it, and the calls that it makes can be told from those of others.
    """
    return _CARRIED.get()


@contextlib.contextmanager
def traced(traceparent: str | None) -> Iterator[None]:
    """Calls made within carry this, as it stands; with None they carry none.

    For whoever has spans of a tracer: what it injects goes in here. Raises ConfigError for what is no traceparent.
    """
    token = _CARRIED.set(None if traceparent is None else checked_traceparent(traceparent))
    try:
        yield
    finally:
        _CARRIED.reset(token)


def take_up(traceparent: str | None) -> None:
    """From here on, to the end of this context, calls carry this. For who runs a handler in a context of its own."""
    _CARRIED.set(traceparent)


def carrying(options: Mapping[str, Any] | None, traceparent: str) -> Mapping[str, Any]:
    """The options of a call with this trace, unless its caller named one."""
    if options is None:
        return {"traceparent": traceparent}
    return options if "traceparent" in options else {**options, "traceparent": traceparent}

"""What an agent can do: the descriptor it answers with, and the rule for names.

Owns the spelling of a capability. Pure: under which keys one is stored is the overlay's business.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from synapse_p2p.exceptions import ConfigError

MAX_NAME_BYTES = 128
MAX_SEGMENTS = 4

_SEGMENT = re.compile(r"[a-z0-9._-]+")
_WRONG_CHARACTERS = re.compile(r"[^a-z0-9._/-]")


@dataclass(slots=True)
class AgentCapability:
    """One thing an agent can do, with the JSON Schemas of what goes in and out; an empty schema allows all.

    The name is kept as written: an agent that joins no swarm may call it anything. A swarm normalises it.
    """

    name: str
    description: str = ""
    input_schema: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] = field(default_factory=dict)


def normalize_capability(name: str) -> str:
    """The one spelling of a name: NFKC, lower case, 1 to 4 segments of `[a-z0-9._-]` joined by `/`.

    Normalising twice changes nothing. Raises ConfigError that says what is wrong with the name.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a capability's name is text, not {type(name).__name__}")
    # The length is checked first: NFKC makes one character into as many as eighteen.
    if len(name) > MAX_NAME_BYTES:
        raise ConfigError(f"capability {name[:20]!r}... has more than {MAX_NAME_BYTES} characters")
    normal = unicodedata.normalize("NFKC", name).lower()
    if wrong := _WRONG_CHARACTERS.search(normal):
        raise ConfigError(
            f"capability {name!r} contains {wrong.group()!r}; "
            "letters a-z, digits, '.', '_', '-', '/' are allowed, as in 'code-review' or 'nlp/summarization'"
        )
    if len(normal) > MAX_NAME_BYTES:
        raise ConfigError(f"capability {name[:20]!r}... has more than {MAX_NAME_BYTES} characters once normalised")
    segments = normal.split("/")
    if len(segments) > MAX_SEGMENTS:
        raise ConfigError(f"capability {name!r} has {len(segments)} segments; at most {MAX_SEGMENTS} are allowed")
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise ConfigError(f"capability {name!r} has an empty segment; write it as in 'nlp/summarization'")
    return normal


def ancestors(name: str) -> tuple[str, ...]:
    """The broader capabilities a normalised name implies, broadest first: `a/b/c` implies `a` and `a/b`."""
    segments = name.split("/")
    return tuple("/".join(segments[:count]) for count in range(1, len(segments)))

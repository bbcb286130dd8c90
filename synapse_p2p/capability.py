"""What an agent can do: the descriptor it answers with, the rule for names, and the digest of schemas.

Owns the spelling of a capability. Pure: under which keys one is stored is the overlay's business.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from synapse_p2p.canonical_json import canonical_json
from synapse_p2p.exceptions import ConfigError

MAX_NAME_BYTES = 128
MAX_SEGMENTS = 4
SCHEMAS_LABEL = b"synapse-schemas:v1:"

_SEGMENT = re.compile(r"[a-z0-9._-]+")
_WRONG_CHARACTERS = re.compile(r"[^a-z0-9._/-]")

Scalar: TypeAlias = str | int | float | bool
Attributes: TypeAlias = Mapping[str, Scalar | Sequence[Scalar]]


@dataclass(slots=True)
class AgentCapability:
    """One thing an agent can do, with the JSON Schemas of what goes in and out; an empty schema allows all.

    `version` is a semantic one, as in "2.1.0", or empty. `attributes` are what others may search by: text, numbers,
    bools, and short lists of those, as in `{"tier": "gold", "price": 0.5, "lang": ["de", "en"]}`. All is kept as
    written: an agent that joins no swarm may say anything here. A swarm normalises names and versions, and takes what
    fits a record (`dht.agents.claim`).
    """

    name: str
    description: str = ""
    input_schema: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] = field(default_factory=dict)
    version: str = ""
    attributes: Attributes = field(default_factory=dict)

    def schema_digest(self) -> bytes:
        """32 bytes that stand for both schemas, whoever computes them; none where both are empty.

        SHA-256 of the label and the canonical JSON of `{"input": ..., "output": ...}`. Raises ConfigError for a schema
        that JSON cannot say.
        """
        if not self.input_schema and not self.output_schema:
            return b""
        try:
            schemas = canonical_json({"input": self.input_schema, "output": self.output_schema})
        except ConfigError as error:
            raise ConfigError(f"a schema of capability {self.name!r} is no JSON: {error}") from error
        return hashlib.sha256(SCHEMAS_LABEL + schemas).digest()


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

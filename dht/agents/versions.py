"""Semantic versions and ranges of them: what "parser>=2,<3" takes. Pure. Source: semver.org 2.0.0, sections 9 to 11.

A version here is `major[.minor[.patch]]`, where what is missing is 0; only one with all three numbers may go on with
`-pre-release` and `+build`. A range is comparators joined by commas, which all have to hold:

    >=  >  <=  <    by precedence
    ==              the same version; `==2` is 2.0.0 alone
    !=              another version

A pre-release is in a range only where a comparator other than `!=` names a pre-release of the same three numbers: who
asks for `<3` does not want 3.0.0-beta, and who asks for `>=2` has to ask for 2.1.0-rc.1 by name. Build metadata does
not count. What has no version, or one that is none, is in no range.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from synapse_p2p.exceptions import ConfigError

MAX_VERSION_CHARS = 32
MAX_COMPARATORS = 4
MAX_REMEMBERED_VERSIONS = 4096  # parsed once: a storer compares the same ones again and again

Numbers: TypeAlias = tuple[int, int, int]
Precedence: TypeAlias = tuple[Numbers, tuple[Any, ...]]
"""Compares as versions do. The second part is (1,) of a release, and of a pre-release (0, its identifiers)."""

_NUMBER, _IDENTIFIER = r"(0|[1-9][0-9]*)", r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}"
    rf"(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?)?)?"
)
_COMPARATOR = re.compile(r"([<>=!~^]+)\s*([^<>=!~^\s]+)")
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def normalize_version(text: str) -> str:
    """A version with all three numbers; empty stays empty. Raises ConfigError that says what is wrong."""
    if not isinstance(text, str):
        raise ConfigError(f"a version is text, as in '2.1.0', not {type(text).__name__}")
    if not text:
        return text
    if len(text) > MAX_VERSION_CHARS:
        raise ConfigError(f"version {text[:20]!r}... has {len(text)} characters; at most {MAX_VERSION_CHARS} travel")
    parts = _VERSION.fullmatch(text)
    if parts is None:
        raise ConfigError(
            f"{text!r} is no semantic version: write '2', '2.1' or '2.1.0', and nothing but three numbers may go on, "
            "as in '2.1.0-rc.1'"
        )
    if parts[3] is not None:
        return text
    normal = f"{text}.0" if parts[2] is not None else f"{text}.0.0"
    if len(normal) > MAX_VERSION_CHARS:
        raise ConfigError(f"version {text!r} has more than {MAX_VERSION_CHARS} characters with all three numbers")
    return normal


def read_version(text: str) -> str:
    """A peer's version; empty where it is no semantic one. The agent can do its work all the same, and a later release
    may know other versions.
    """
    try:
        normalize_version(text)
    except ConfigError:
        return ""
    return text


@functools.lru_cache(maxsize=MAX_REMEMBERED_VERSIONS)
def precedence_of(text: str) -> Precedence | None:
    """What a version compares as; None for text that is none."""
    parts = _VERSION.fullmatch(text) if len(text) <= MAX_VERSION_CHARS else None
    if parts is None:
        return None
    numbers = (int(parts[1]), int(parts[2] or 0), int(parts[3] or 0))
    if parts[4] is None:
        return numbers, (1,)
    return numbers, (0, *map(_identifier, parts[4].split(".")))


def _identifier(text: str) -> tuple[int, int | str]:
    # Numbers come before text, and compare as numbers; text compares as ASCII.
    return (0, int(text)) if text.isdigit() else (1, text)


@dataclass(frozen=True, slots=True)
class Comparator:
    """One condition on a version: `symbol` is a key of COMPARISONS, `version` in its normal form.

    Raises ConfigError for another symbol, and for a version that cannot be compared with.
    """

    symbol: str
    version: str
    precedence: Precedence = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.symbol not in COMPARISONS:
            hint = {"=": "; write '=='", "~=": "; write '>=1.4,<2'", "^": "; write '>=1.4,<2'"}.get(self.symbol, "")
            raise ConfigError(f"{self.symbol!r} compares no versions{hint}: there are {', '.join(COMPARISONS)}")
        normal = normalize_version(self.version)
        precedence = precedence_of(normal)
        if precedence is None:
            raise ConfigError(f"a version has to follow {self.symbol!r}, as in '{self.symbol}2.1.0'")
        if "+" in normal:
            raise ConfigError(f"{normal!r}: builds of one version are equal; leave out what follows '+'")
        object.__setattr__(self, "version", normal)
        object.__setattr__(self, "precedence", precedence)

    def holds_for(self, precedence: Precedence) -> bool:
        return COMPARISONS[self.symbol](precedence, self.precedence)

    def __str__(self) -> str:
        return f"{self.symbol}{self.version}"


@dataclass(frozen=True, slots=True)
class VersionRange:
    """The versions for which all comparators hold, with the module's rule for pre-releases."""

    comparators: tuple[Comparator, ...]
    _named: frozenset[Numbers] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < len(self.comparators) <= MAX_COMPARATORS:
            raise ConfigError(f"a range has 1 to {MAX_COMPARATORS} comparators, not {len(self.comparators)}")
        bounds = [each.precedence for each in self.comparators if each.symbol != "!="]
        object.__setattr__(self, "_named", frozenset(numbers for numbers, rest in bounds if not rest[0]))

    def contains(self, version: str) -> bool:
        """Whether this is a version in the range. Cost: 0.3 us, and a comparison for each comparator."""
        precedence = precedence_of(version)
        if precedence is None or (not precedence[1][0] and precedence[0] not in self._named):
            return False
        return all(each.holds_for(precedence) for each in self.comparators)

    def __str__(self) -> str:
        return ",".join(map(str, self.comparators))


def parse_range(text: str) -> VersionRange:
    """The range that a user typed, as in ">=2,<3". Raises ConfigError, also for one in which no version can be."""
    comparators = []
    for part in text.split(","):
        parts = _COMPARATOR.fullmatch(part.strip())
        if parts is None:
            raise ConfigError(f"{text!r} is no range of versions; write it as in '>=2,<3'")
        comparators.append(Comparator(parts[1], parts[2]))
    found = VersionRange(tuple(comparators))
    if not _can_hold(comparators):
        raise ConfigError(f"no version is in the range {text!r}")
    return found


def _can_hold(comparators: Sequence[Comparator]) -> bool:
    """Whether they do not contradict each other."""
    closed = [each.precedence for each in comparators if each.symbol in ("==", ">=", "<=")]
    if any(all(other.holds_for(bound) for other in comparators) for bound in closed):
        return True  # a bound that belongs to the range
    if any(each.symbol == "==" for each in comparators):
        return False
    lower = [each.precedence for each in comparators if each.symbol in (">=", ">")]
    upper = [each.precedence for each in comparators if each.symbol in ("<=", "<")]
    return not lower or not upper or max(lower) < min(upper)

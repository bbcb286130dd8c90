"""What a searcher asks for: capabilities, in which versions, and with which attributes.

Pure. Runs at the searcher, which checks every record, and at storers, which filter by it. What one agent has to meet:

    "parser"         the capability or one below it: who can do parser/html can parse
    "parser/"        the same, in other words
    "parser>=2,<3"   the capability itself, in this range: who can do parser/html 2.0 has no version of parser
    "nlp/>=2"        the capability or one below it, each in its own version
    where={...}      see `where.py`

All names have to be met by one agent. `where` is about the claims that the names take: one that states an attribute has
to meet the condition, or it is not taken; one that does not state it may be taken, and then another has to. So for a
single capability all conditions hold on its claim, and "python" may state the price that "code-review" does not.

On the wire a map: {wanted: [[name, takes_below, [[symbol, version], ...]], ...], where: [[attribute, operator, value],
...]}. What a storer does not know of it, it leaves out; then it answers more than was asked for, never less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dht.agents.claim import CapabilityClaim
from dht.agents.record import AgentRecord
from dht.agents.versions import COMPARISONS, MAX_COMPARATORS, Comparator, VersionRange, parse_range
from dht.agents.where import Condition, parse_where, read_where, where_to_list
from synapse_p2p.capability import normalize_capability
from synapse_p2p.exceptions import ConfigError, InvalidMessageError

MAX_WANTED = 8
"""Capabilities in one query. An agent has 16; who wants more than half of them knows which agent it wants."""

_RANGE_BEGINS = re.compile(r"[<>=!~^]")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One capability that is asked for, in its normal form; `takes_below` says whether a range is one of those below
    it, too. Without a range they are always taken.
    """

    name: str
    takes_below: bool = False
    versions: VersionRange | None = None
    _below: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_below", self.name + "/")

    def takes(self, claim: CapabilityClaim) -> bool:
        """Whether this claim is one of what is wanted."""
        versions = self.versions
        if claim.name == self.name:
            return versions is None or versions.contains(claim.version)
        if not claim.name.startswith(self._below):
            return False
        return versions is None or (self.takes_below and versions.contains(claim.version))

    def is_met_by(self, claims: Iterable[CapabilityClaim]) -> bool:
        """Whether it takes one of these."""
        for claim in claims:  # noqa: SIM110
            if self.takes(claim):
                return True
        return False

    def __str__(self) -> str:
        return f"{self.name}{'/' if self.takes_below else ''}{self.versions or ''}"


@dataclass(frozen=True, slots=True)
class Query:
    """What one agent has to have, all of it; `parse_query` makes one of what a user typed."""

    wanted: tuple[Wanted, ...]
    where: tuple[Condition, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The capabilities, each once: any of them leads to all agents that match."""
        return tuple(dict.fromkeys(each.name for each in self.wanted))

    @property
    def is_met_by_name(self) -> bool:
        """Whether every record stored under its name matches, so that there is nothing to filter."""
        return len(self.names) == 1 and not self.where and all(each.versions is None for each in self.wanted)

    def matches(self, record: AgentRecord) -> bool:
        """Whether this agent has it all. Tombstones are not for queries: let them through.

        Cost: 0.3 us for a name, 2 us with three conditions; 0.2 ms where query and record are made to be slow.
        """
        claims: Sequence[CapabilityClaim] = record.capabilities
        if self.where:
            claims = [claim for claim in claims if self._may_be_taken(claim)]
        # Loops, here and below: a storer does this for a thousand records, and `all` takes twice the time.
        for wanted in self.wanted:
            if not wanted.is_met_by(claims):
                return False
        for condition in self.where:  # noqa: SIM110
            if not condition.is_stated_by(claims):
                return False
        return True

    def _may_be_taken(self, claim: CapabilityClaim) -> bool:
        """Whether a name takes this claim, and nothing that it states speaks against that."""
        for wanted in self.wanted:
            if wanted.takes(claim):
                break
        else:
            return False
        for condition in self.where:  # noqa: SIM110
            if condition.is_contradicted_by(claim):
                return False
        return True

    def to_map(self) -> dict[str, Any]:
        """As it travels."""
        return {"wanted": [_wanted_to_list(each) for each in self.wanted], "where": where_to_list(self.where)}

    @classmethod
    def from_map(cls, mapping: Any) -> Query:
        """What a peer sent, as far as this release knows it: what matches the whole matches this too.

        Raises InvalidMessageError.
        """
        if not isinstance(mapping, Mapping):
            raise InvalidMessageError("a query is a map")
        wanted = mapping.get("wanted")
        if type(wanted) is not list or not 0 < len(wanted) <= MAX_WANTED:
            raise InvalidMessageError(f"wanted is an array of 1 to {MAX_WANTED}")
        return cls(tuple(_read_wanted(item) for item in wanted), read_where(mapping.get("where", [])))

    def __str__(self) -> str:
        names = ", ".join(map(str, self.wanted))
        return f"{names} where {' and '.join(map(str, self.where))}" if self.where else names


def parse_query(wanted: Iterable[str], where: Mapping[str, Any] | None = None) -> Query:
    """The query that a user typed. Raises ConfigError that says what is wrong, and where nothing can match."""
    if isinstance(wanted, str):
        raise ConfigError(f"a query names a list of capabilities: write [{wanted!r}]")
    parsed = tuple(dict.fromkeys(_parse_wanted(each) for each in wanted))
    if not parsed:
        raise ConfigError('name at least one capability, as in find("code-review")')
    if len(parsed) > MAX_WANTED:
        raise ConfigError(f"a query names at most {MAX_WANTED} capabilities, not {len(parsed)}")
    return Query(parsed, parse_where(where or {}))


def _parse_wanted(text: Any) -> Wanted:
    if not isinstance(text, str):
        return Wanted(normalize_capability(text))
    begins = _RANGE_BEGINS.search(text)
    name, versions = (text[: begins.start()], text[begins.start() :]) if begins else (text, "")
    name = name.strip()
    below = name.removesuffix("/")
    try:
        found = parse_range(versions) if begins else None
    except ConfigError as error:
        raise ConfigError(f"capability {text!r}: {error}") from error
    return Wanted(normalize_capability(below), below != name, found)


def _wanted_to_list(wanted: Wanted) -> list[Any]:
    comparators = wanted.versions.comparators if wanted.versions is not None else ()
    return [wanted.name, wanted.takes_below, [[each.symbol, each.version] for each in comparators]]


def _read_wanted(item: Any) -> Wanted:
    match item:
        case [str() as name, bool() as takes_below, list() as comparators, *_] if len(comparators) <= MAX_COMPARATORS:
            pass
        case _:
            raise InvalidMessageError("wanted holds [name, takes_below, range]")
    try:
        is_normal = normalize_capability(name) == name
    except ConfigError:
        is_normal = False
    if not is_normal:
        raise InvalidMessageError("a wanted name is in its normal form")
    return Wanted(name, takes_below, _read_range(comparators))


def _read_range(items: list[Any]) -> VersionRange | None:
    """None also for a range with a symbol from the future: without one comparator the rest can let less through, for
    it may be what names a pre-release.
    """
    comparators = []
    for item in items:
        match item:
            case [str() as symbol, str() as version, *_]:
                pass
            case _:
                raise InvalidMessageError("a range holds [symbol, version]")
        if symbol not in COMPARISONS:
            return None
        try:
            comparators.append(Comparator(symbol, version))
        except ConfigError as error:
            raise InvalidMessageError("a range compares with what is no version") from error
    return VersionRange(tuple(comparators)) if comparators else None

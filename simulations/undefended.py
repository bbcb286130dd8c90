"""Rules of the capability index taken away by name: what `sabotage.py` does to settings, done to rules that have none.

A rule is code, so for as long as a run lasts another stands in its place; one run at a time in a process, as all are
played. Nobody is kept from lying by any of it: the liars are those of the scenario, the same with the rule and without.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

from dht import finding, responder, store
from dht.agents import placement, search, shards
from dht.agents.index import capability_root
from dht.agents.record import AgentRecord
from dht.agents.search import Ended, ShardSearch
from dht.agents.shards import R, Ranked, Shard, ShardReport
from dht.reading import Record
from dht.responder import Responder

Replacement: TypeAlias = tuple[object, str, object]
"""Whose, which, and by what it is replaced."""

_depths_for = placement.depths_for
_place_of = Responder._place_of
_report_on = shards.report_on


def _belongs_anywhere(_record: AgentRecord, _capability: str, _depth: int, _key: bytes) -> None:
    """In the place of `check_belongs` at storers; a searcher goes on checking."""


def _largest_word(reports: Sequence[ShardReport], *, answered: int, is_proved: bool) -> ShardReport | None:
    """In the place of `believed_report`: of each figure the largest that any storer says, proved or not."""
    if not reports:
        return None
    return ShardReport(
        count=max(report.count for report in reports),
        depth=max(report.depth for report in reports),
        is_full=any(report.is_full for report in reports),
        estimate=max(report.estimate for report in reports),
    )


def _only_deeper(providers: float, cap: int, current: Mapping[int, bool] | None = None) -> tuple[int, ...]:
    """In the place of `depths_for`: a depth that was once right is never left for a shallower one."""
    least = min(current or {0: False})
    return tuple(depth for depth in _depths_for(providers, cap, current) if depth >= least) or tuple(current or (0,))


def _where_it_is_brought(self: Responder, record: Record, capability: str | None, depth: int) -> Any:
    """In the place of `_place_of`: who is not near the key of the depth that a record names keeps it under the root."""
    place = _place_of(self, record, capability, depth)
    if not isinstance(record, AgentRecord) or capability is None or self._is_close(place.key):
        return place
    return replace(place, key=capability_root(record.network_id, capability))


def _deepest_named(held: Sequence[Ranked], shard: Shard, **limits: Any) -> ShardReport:
    """In the place of `report_on`: of the depths that records name the deepest, and not the median."""
    report = _report_on(held, shard, **limits)
    return replace(report, depth=max([report.depth, *(record.depth for record in held)]))


def _oldest_goes(held: Sequence[R]) -> R:
    """In the place of `first_to_go`: the oldest, and not who crowds or is misplaced."""
    return held[0]


def _empty_handed(self: ShardSearch, reason: str) -> Ended:
    """In the place of `_at_end`: what was read and is no sample, as the root mostly is, is not taken in the end."""
    self._end = Ended(complete=False, reason=reason)
    return self._end


_EMPTY_HANDED: Replacement = (ShardSearch, "_at_end", _empty_handed)
_OLDEST_GOES: Replacement = (store, "first_to_go", _oldest_goes)
_ANY_PLACE: Replacement = (Responder, "_place_of", _where_it_is_brought)
_DEEPEST: Replacement = (responder, "report_on", _deepest_named)
_LARGEST_WORD: Replacement = (finding, "believed_report", _largest_word)
_NO_DOUBT: Replacement = (search, "PROVES_NOTHING_PART", 0)
_RULES: dict[str, tuple[Replacement, ...]] = {
    "no-belonging": ((responder, "check_belongs", _belongs_anywhere),),
    "largest-word": (_LARGEST_WORD,),
    "no-return": ((placement, "depths_for", _only_deeper),),
    "oldest-goes": (_OLDEST_GOES,),
    "any-place": (_ANY_PLACE,),
    "deepest": (_DEEPEST,),
    "no-doubt": (_NO_DOUBT,),
    "empty-handed": (_EMPTY_HANDED,),
    "at-their-word": (_OLDEST_GOES, _ANY_PLACE, _DEEPEST, _NO_DOUBT, _EMPTY_HANDED),
}
RULES = tuple(_RULES)


@contextmanager
def undefended(rule: str) -> Generator[None, None, None]:
    """Go without this rule until it is left; any other word changes nothing."""
    with ExitStack() as stack:
        for owner, name, stand_in in _RULES.get(rule, ()):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, stand_in)
        yield

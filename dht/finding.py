"""Finds who has a capability: reads its shards at their storers, and believes nothing that is not signed.

It runs what `agents/search.py` decides. Of one shard it asks until three storers had nobody new to name, so that what
one of them lacks another adds; all of them, where a search is strict; and the first that knows anybody, where it is
fast.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from dht.agents.index import capability_root, check_belongs, shard_key
from dht.agents.query import Query
from dht.agents.record import AgentRecord, NewestSeen, is_news
from dht.agents.search import Ended, Read, ShardSearch, Take
from dht.agents.shards import Shard, ShardReport, believed_report, in_turns
from dht.config import DHTConfig
from dht.contact import Contact
from dht.exceptions import RecordRefused
from dht.keyspace import Key
from dht.lookup import LookupMode, LookupOutcome
from dht.messages import FindValue, FindValueAnswer
from dht.records import Gone
from dht.requester import Requester
from dht.responder import Responder
from dht.results import ShardRead
from synapse_p2p.background import TaskScope
from synapse_p2p.identity import NodeID
from synapse_p2p.peers import Host

NONCE_SIZE_BYTES = 8
MAX_PAGES = 40
"""Answers of one storer about one shard: 48 KiB each, and a thousand records fit into as many."""
HINT_S = 600.0
"""How long an estimate of a capability's providers is believed; each registers anew within less."""
MAX_HINTS = 1024
"""Capabilities of which an estimate is remembered; past it the oldest goes."""

MAX_HEARD = 16
"""Reads that such an estimate counts as at most: a mean of more would follow a crowd that grows too slowly."""

Fits = Callable[[AgentRecord], bool]


@dataclass(frozen=True, slots=True)
class ProvidersFound:
    """The verified records of a capability's providers, the newest of each; `reason` says why they may not be all.

    They are in random order, but for the turns that parties take: one of each /24 comes before a second of any, so that
    who takes the first few is not taken in by a crowd of one owner's. A party is what a record says: who lies as to
    where it is does not answer there.

    `capability` is the one that was read, and `reads` are all that were made.
    """

    records: tuple[AgentRecord, ...]
    reason: str
    capability: str
    reads: tuple[ShardRead, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether these are all that honest storers know of."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class _Hint:
    """How many providers a capability has: when that was heard, and of how many reads it is the mean."""

    heard_at: float
    providers: float
    heard_count: int


@dataclass(slots=True)
class _ShardRead:
    """What the storers of one shard said, of whom none is trusted: verified, and the newest of each owner."""

    shard: Shard
    newest: dict[NodeID, AgentRecord] = field(default_factory=dict)
    reports: dict[NodeID, ShardReport] = field(default_factory=dict)  # by storer
    outcome: LookupOutcome | None = None
    is_truncated: bool = False
    verdicts: dict[bytes, bool] = field(default_factory=dict)  # k storers send the same bytes: they are read once

    def live(self) -> list[AgentRecord]:
        """The records of those who have not withdrawn."""
        return [record for record in self.newest.values() if record.gone is None]

    def report(self) -> ShardReport | None:
        """What most of those say who hold anything; None where nobody answered at all."""
        closest = self.outcome.closest if self.outcome is not None else ()
        reports = list(self.reports.values())
        if believed := believed_report(reports, answered=len(closest), is_proved=bool(self.newest)):
            return believed
        if self.outcome is not None and not closest and self.outcome.asked:
            return None
        return ShardReport(0, self.shard.stem().depth, is_full=False, estimate=0)

    def result(self, capability: str) -> ShardRead:
        """What is told of it."""
        return ShardRead(capability, self.shard, self.report(), len(self.live()), self.outcome)

    @property
    def reason(self) -> str:
        """Why somebody may be missing; empty where nobody is."""
        outcome = self.outcome
        if outcome is not None and not outcome.complete:
            if not outcome.closest:
                return f"none of the {outcome.asked} nodes asked answered"
            if outcome.is_thin:
                return f"of the nodes near the key only {len(outcome.region)} answered"
            return f"the search was given up after {outcome.asked} requests"
        return "a storer holds more providers than it sent" if self.is_truncated else ""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one search is for."""

    query: Query
    mode: LookupMode
    limit: int | None
    also: Fits
    on_taken: Callable[[AgentRecord], None]

    def fits(self, record: AgentRecord) -> bool:
        """Whether it is one of those."""
        return record.gone is None and self.query.matches(record) and self.also(record)

    def count(self, records: Iterable[AgentRecord]) -> int:
        """How many of these fit."""
        return sum(map(self.fits, records))

    def is_enough(self, records: Iterable[AgentRecord]) -> bool:
        """Whether no more of a storer are wanted. A fast search ends with one page: whoever is on it will do."""
        if self.mode is LookupMode.FAST or self.limit is not None:
            return self.count(records) >= (self.limit or 1)
        return False


class Finding:
    """One node's searches for providers. What it remembers of capabilities is bounded by `MAX_HINTS`."""

    def __init__(self, host: Host, config: DHTConfig, requester: Requester, responder: Responder) -> None:
        self._host = host
        self._cap = config.records.max_records_per_key
        self._requester = requester
        self._responder = responder
        self._newest_seen = NewestSeen()
        self._hints: OrderedDict[str, _Hint] = OrderedDict()

    async def providers(
        self,
        query: Query,
        mode: LookupMode,
        *,
        limit: int | None = None,
        fits: Fits | None = None,
        on_taken: Callable[[AgentRecord], None] | None = None,
    ) -> ProvidersFound:
        """Those who match a query, and whose records fit; at most about `limit`, at random.

        The rarest of its capabilities is read, for which the root of each other one is looked at, unless it was lately.
        Cost: one lookup mostly; two where a capability has more providers than one storer keeps.
        """
        wanted = _Wanted(query, mode, limit, fits or _all_fit, on_taken or _tell_nobody)
        searches = {name: self._new_search(name, limit) for name in query.names}
        reads: dict[str, _ShardRead] = {}
        if len(searches) > 1:
            async with TaskScope("find") as scope:
                looks = {
                    name: scope.spawn_awaited(self._read(name, step.shard, wanted))
                    for name, search in searches.items()
                    if isinstance(step := search.poll(), Read) and search.estimate is None
                }
                reads = {name: await look for name, look in looks.items()}
        rarest = min(searches, key=lambda name: self._providers_of(searches[name], reads.get(name)))
        others = tuple(read.result(name) for name, read in reads.items() if name != rarest)
        found = await self._run(rarest, searches[rarest], reads.get(rarest), wanted)
        return replace(found, reads=others + found.reads)

    async def _run(
        self, capability: str, search: ShardSearch, first: _ShardRead | None, wanted: _Wanted
    ) -> ProvidersFound:
        reads: dict[Shard, _ShardRead] = {}
        newest: dict[NodeID, AgentRecord] = {}
        while not isinstance(step := search.poll(), Ended):
            if isinstance(step, Read):
                read, first = first or await self._read(capability, step.shard, wanted), None
                reads[step.shard] = read
                search.on_read(step.shard, read.report(), is_whole=not read.reason)
            elif isinstance(step, Take):
                for record in reads[step.shard].newest.values():
                    if record.owner not in newest and wanted.fits(record):
                        wanted.on_taken(record)
                    if is_news(newest, record.owner, record.seq):
                        newest[record.owner] = record
                search.on_taken(wanted.count(newest.values()))
        self._remember(capability, search)
        # A withdrawal is of some names, and says nothing of the others; a revocation is met once for all of them.
        found = self._newest_seen.of(record for record in newest.values() if record.gone is not Gone.NOW)
        records = tuple(self._in_turns([record for record in found if record.gone is None and wanted.fits(record)]))
        reason = "" if step.complete else next((read.reason for read in reads.values() if read.reason), step.reason)
        if reason and wanted.limit is not None and len(records) >= wanted.limit:
            reason = f"limit {wanted.limit}"
        return ProvidersFound(records, reason, capability, tuple(read.result(capability) for read in reads.values()))

    def _in_turns(self, records: list[AgentRecord]) -> list[AgentRecord]:
        self._host.runtime.rng.shuffle(records)
        return in_turns(records, lambda record: self._requester.party_of(Contact(record.owner, record.addresses)))

    async def _read(self, capability: str, shard: Shard, wanted: _Wanted) -> _ShardRead:
        """Ask the storers of one shard."""
        root = capability_root(self._host.network_id, capability)
        key = shard_key(root, shard.prefix, shard.depth)
        query = None if wanted.query.is_met_by_name else wanted.query
        request = FindValue.of_shard(
            key,
            capability,
            shard,
            self._host.runtime.token_bytes(NONCE_SIZE_BYTES),
            limit=wanted.limit or 0,
            query=query,
        )
        read = _ShardRead(shard)
        own_id = self._host.identity.node_id

        async def ask_ourselves(request: FindValue) -> FindValueAnswer:
            return self._responder.held(request)

        await self._read_pages(read, own_id, ask_ourselves, request, wanted, key)
        if wanted.count(read.newest.values()) and wanted.mode is LookupMode.FAST:
            return read

        async def ask(contact: Contact) -> tuple[Sequence[Contact], bool]:
            known = len(read.newest)
            first, holds = await self._read_pages(
                read, contact.id, partial(self._requester.find_value, contact), request, wanted, key
            )
            if wanted.mode is LookupMode.FAST:
                return first.contacts, wanted.count(read.newest.values()) > 0
            return first.contacts, holds and (wanted.mode is LookupMode.STRICT or len(read.newest) == known)

        read.outcome = await self._requester.lookup(key, wanted.mode, ask=ask)
        return read

    async def _read_pages(
        self,
        read: _ShardRead,
        storer: NodeID,
        ask: Callable[[FindValue], Awaitable[FindValueAnswer]],
        request: FindValue,
        wanted: _Wanted,
        key: Key,
    ) -> tuple[FindValueAnswer, bool]:
        """The first answer of one storer, and whether it holds anybody. Others are asked for while more is wanted."""
        first = answer = await ask(request)
        holds = self._take(read, storer, answer, request, key)
        pages = 1
        while answer.next > request.skip and pages < MAX_PAGES and not wanted.is_enough(read.newest.values()):
            request = request.after(answer)
            answer = await ask(request)
            holds |= self._take(read, storer, answer, request, key)
            pages += 1
        read.is_truncated |= bool(answer.next)
        return first, holds

    def _take(self, read: _ShardRead, storer: NodeID, answer: FindValueAnswer, request: FindValue, key: Key) -> bool:
        """Whether an answer has a record of somebody who is there."""
        for envelope in answer.records:
            if envelope not in read.verdicts:
                read.verdicts[envelope] = self._is_one(read, envelope, key, request.capability or "")
        if answer.count or answer.full:
            read.reports.setdefault(storer, answer.report)
        return any(read.verdicts[envelope] for envelope in answer.records)

    def _is_one(self, read: _ShardRead, envelope: bytes, key: Key, capability: str) -> bool:
        """Whether this is a record of the shard, and of somebody who is there; the newest of its owner counts."""
        try:
            record = self._responder.read(envelope)
            check_belongs(record, capability, read.shard.depth, key)
        except RecordRefused:
            return False
        if is_news(read.newest, record.owner, record.seq):
            read.newest[record.owner] = record
        return record.gone is None

    # What is remembered of capabilities

    def _new_search(self, capability: str, limit: int | None) -> ShardSearch:
        hint = self._hints.get(capability)
        if hint is None or self._host.runtime.now() - hint.heard_at >= HINT_S:
            return ShardSearch(self._cap, self._host.runtime.rng, limit=limit)
        return ShardSearch(
            self._cap, self._host.runtime.rng, limit=limit, estimate=hint.providers, heard_count=hint.heard_count
        )

    def _remember(self, capability: str, search: ShardSearch) -> None:
        self._hints.pop(capability, None)
        if search.estimate:
            heard_count = min(search.heard_count, MAX_HEARD)
            self._hints[capability] = _Hint(self._host.runtime.now(), search.estimate, heard_count)
            if len(self._hints) > MAX_HINTS:
                self._hints.popitem(last=False)

    @staticmethod
    def _providers_of(search: ShardSearch, read: _ShardRead | None) -> float:
        report = None if read is None else read.report()
        return float(report.estimate) if report is not None else search.estimate or 0.0


def _all_fit(_record: AgentRecord) -> bool:
    return True


def _tell_nobody(_record: AgentRecord) -> None:
    """Nobody wants to know."""

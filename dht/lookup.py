"""The iterative lookup: which contact is asked next, and when the search is over.

Pure: no clock, no socket, no task. A runner polls it, sends what it is told to send, and says what came back; it
cancels what is still in flight when `Finished` comes. Sources: Kademlia section 2.3; Baumgart and Mies, "S/Kademlia"
(2007), for disjoint paths; libtorrent for branching on a slow answer.

A candidate's life, told by events:

    (unknown)   a seed, or named in a reply        -> unasked, or resting if it failed another lookup a moment ago
    unasked     picked by `poll`                   -> in flight
    in flight   its short time passed              -> in flight, and somebody else is asked beside it
    in flight   replied                            -> answered
    in flight   failed, or its long time passed    -> failed for good
    resting     nobody answered at all             -> unasked

Whom a path may ask is in `shortlist.py`. The lookup itself ends once:

    strict      all eligible have answered or failed and nothing is in flight; if fewer than k answered, the nearest of
                those that density or diversity skipped are asked first
    early       the 3 closest eligible have answered, whoever else is in flight (to find one node by its id)
    fast        a value was found, and it has no versions; until then as strict, and then it widens
    fresh       holders of a value from 3 groups were found; until then as fast. A fast lookup that finds a value with
                versions is fresh from then on
    guarded     as strict, over several paths from the start
    any         `max_requests` are spent and nothing is in flight: then it is incomplete

To widen is to go on, over `paths` more paths that start from contacts of our own that nobody was asked for yet. A miss
widens. It and a guarded lookup go on over `max_paths` where those that answered lie too thinly round the target, and
again while they lie much too thinly (`doubt.py`): some may name each other alone, and one more contact who does
not is enough. Such a path knows who has answered the others, so where all is well it is over after one request. At last
the k nearest are asked that nobody was, whoever named them: what the few good contacts said is among it. A fresh lookup
whose storers contradict each other goes on once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from dht.config import LookupConfig
from dht.contact import Contact
from dht.doubt import Answers
from dht.keyspace import Key
from dht.outcome import (
    Ask,
    Finished,
    LookupMode,
    LookupOutcome,
    Step,
    TraceEvent,
    TraceStep,
    Wait,
    Why,
    Widen,
)
from dht.region import REGION_FACTOR, GroupOf, Region, every_one_alone, fill, thin
from dht.shortlist import ANSWERED, FAILED, IN_FLIGHT, MAX_INFORMERS, RESTING, UNASKED, Candidate, Path
from synapse_p2p.identity import NodeID

SHORTLIST_FACTOR = 20
"""A shortlist holds at most this many times k candidates; an honest network fills a quarter of it."""
EARLY_COUNT = 3
"""Closest candidates that must have answered before an early lookup ends; it asks no others."""
FRESH_GROUPS = 3
"""A fresh value is the newest that storers of so many groups hold: two of one party prove no more than one."""
FLIGHT_FACTOR = 4
"""At most this many times alpha are in flight, slow ones among them."""


class Peers(Protocol):
    """What a node knows of others beside their ids."""

    def timeouts_s(self, contact: Contact) -> tuple[float, float]:
        """After how long an answer is slow, and after how long it is not waited for."""
        ...

    def is_connected(self, contact: Contact) -> bool:
        """Whether a request needs no dial."""
        ...

    def rtt_s(self, contact: Contact) -> float:
        """How fast it answers."""
        ...

    @property
    def group_of(self) -> GroupOf:
        """The party of who is at some addresses. Asked of everybody who is named, so no call is between."""
        ...

    def is_resting(self, contact: Contact) -> bool:
        """Whether it failed a moment ago."""
        ...


class Strangers:
    """Peers of whom nothing is known: all are waited for as long as the configuration says."""

    def __init__(self, config: LookupConfig) -> None:
        self._timeouts_s = (config.request_timeout_s, config.request_timeout_s)

    def timeouts_s(self, contact: Contact) -> tuple[float, float]:
        return self._timeouts_s

    def is_connected(self, contact: Contact) -> bool:
        return False

    def rtt_s(self, contact: Contact) -> float:
        return 0.0

    @property
    def group_of(self) -> GroupOf:
        return every_one_alone

    def is_resting(self, contact: Contact) -> bool:
        return False


class Lookup:
    """One search for the nodes closest to `target`, or for a value they hold.

    `seeds` are our own contacts nearest to the target, nearest first, thinned by density; `region` is what our estimate
    says. Invariants: at most `alpha` in flight that are not slow (one for each path, once there are as many), at most
    `max_requests` asked, nobody asked twice, never our own id.
    """

    def __init__(
        self,
        target: Key,
        *,
        own_id: NodeID,
        seeds: Iterable[Contact],
        mode: LookupMode,
        config: LookupConfig,
        region: Region | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._target = target
        self._target_point = int.from_bytes(target, "big")
        self._own_id = own_id
        self._mode = mode
        self._seeks_value = mode.seeks_value  # of every mode that this one may turn into too
        self._config = config
        self._region = region or Region.unknown(config.k)
        self._peers = peers or Strangers(config)
        # An early lookup asks nobody but the few it waits for: a third fewer requests for the same time.
        is_early = mode is LookupMode.EARLY
        self._wanted = min(EARLY_COUNT, config.k) if is_early else config.k
        # All inside a region keep a value, so the k nearest saying no is a no: to ask the rest would cost a half more.
        self._max_eligible = self._wanted if is_early or mode.seeks_value else REGION_FACTOR * config.k
        self._max_shortlist = SHORTLIST_FACTOR * config.k
        self._max_in_flight = FLIGHT_FACTOR * max(config.alpha, config.paths)
        self._candidates: dict[NodeID, Candidate] = {}
        self._paths: list[Path] = []
        self._in_flight: dict[NodeID, Candidate] = {}
        self._due_at = float("inf")  # when the first of them becomes slow or fails, or earlier
        self._group_counts: dict[str, int] = {}  # requests by group; of lookups for a value alone
        self._asked = 0
        self._answered = 0
        self._failed = 0
        self._slow = 0
        self._widened = 0
        self._has_resting = False
        self._has_asked_farther = False
        self._is_last_resort = False  # nobody else answered, so the resting are asked
        self._holders: dict[NodeID, Candidate] = {}  # that have a value
        self._holder_groups: dict[str | NodeID, None] = {}
        self._trace: list[TraceStep] = []
        self._outcome: LookupOutcome | None = None
        if mode is LookupMode.GUARDED:
            self._open_paths(list(seeds), config.paths)
        else:
            self._open_path(seeds, alpha=config.alpha)

    def poll(self, now: float) -> Step:
        """What to do now. Poll again at once after `Ask` and `on_widen`, and after `Wait` when something happened."""
        if self._outcome is None:
            if now >= self._due_at:
                self._look_at_overdue(now)
            step = self._next_step(now)
            if not isinstance(step, Finished):
                return step
            self._outcome = step.outcome
        return Finished(self._outcome)

    def is_inside(self, contact: Contact) -> bool:
        """Whether it is in the region: who stores, sends it the record instead of a question."""
        return contact.point ^ self._target_point <= self._region.radius

    def on_reply(self, sender: NodeID, closer: Sequence[Contact], now: float) -> None:
        """`sender` answered and named these contacts. Ignored unless it is in flight."""
        candidate = self._in_flight.get(sender)
        if self._outcome is not None or candidate is None:
            return
        path = self._land(candidate)
        candidate.state = ANSWERED
        for informer in candidate.informers:
            informer.misled -= 1
        self._answered += 1
        self._record(TraceEvent.ANSWERED, candidate, now)
        self._add(path, closer, depth=candidate.depth + 1, informer=candidate)

    def on_found(self, sender: NodeID, closer: Sequence[Contact], now: float, *, version: int = 0) -> None:
        """As `on_reply`, and the reply carried a value that the runner checked. Ends a fast lookup, unless it is one
        `version` of it, above 0, so that others may have a newer one.
        """
        candidate = self._in_flight.get(sender)
        if self._outcome is not None or candidate is None:
            return
        if version and self._mode is LookupMode.FAST:
            self._mode = LookupMode.FRESH
        candidate.has_value = True
        candidate.version = version
        self._holders[sender] = candidate
        self._holder_groups[candidate.group or sender] = None
        self.on_reply(sender, closer, now)

    def on_failure(self, sender: NodeID, now: float, *, was_tried: bool = True) -> None:
        """The request to `sender` failed. Ignored unless it is in flight.

        One that was never tried, for we may dial no more for now, says nothing of those who named it.
        """
        candidate = self._in_flight.get(sender)
        if self._outcome is not None or candidate is None:
            return
        self._land(candidate)
        candidate.state = FAILED
        for informer in candidate.informers:
            informer.misled += was_tried
        for path in self._paths:
            path.outdate()
        self._failed += 1
        self._record(TraceEvent.FAILED, candidate, now)

    def on_widen(self, contacts: Sequence[Contact], now: float) -> None:
        """Go on from these, the nearest own contacts. Those that were asked stay asked."""
        count = self._path_count_to_add()
        if self._outcome is not None or not count:
            return
        self._widened += 1
        fresh = [contact for contact in contacts if not self._is_asked(contact.id)]
        self._open_paths(fresh, count)

    # What is next

    def _next_step(self, now: float) -> Step:
        if self._has_value():
            return self._finish(is_complete=True)
        picked: list[Candidate] = []
        for path in self._paths:
            path.update(self._wanted, self._max_eligible, self._region, self._config.max_per_group)
            if self._mode is LookupMode.EARLY and path.eligible and _all_answered(path.eligible):
                return self._finish(is_complete=True)
            if path.unasked:
                self._pick(path, picked, now)
        if picked:
            return Ask(tuple([candidate.contact for candidate in picked]))
        if self._in_flight:
            self._due_at = min([min(candidate.slow_at, candidate.fails_at) for candidate in self._in_flight.values()])
            return Wait(self._due_at)
        if self._asked >= self._config.max_requests:
            return self._finish(is_complete=not self._has_unasked())
        if self._force_skipped() or self._wake_resting():
            return self._next_step(now)
        if count := self._path_count_to_add():
            return Widen(count * self._config.path_seeds + self._asked)
        if self._ask_farther():
            return self._next_step(now)
        return self._finish(is_complete=True)

    def _pick(self, path: Path, picked: list[Candidate], now: float) -> None:
        """Ask as many of this path's eligible as there are places, and note them in `picked`."""
        if self._mode is LookupMode.FAST and _is_in_time(path.alone):
            return
        if not self._seeks_value and path.in_flight_count - path.slow_count >= path.alpha:
            return  # after every answer but the last of a round, and the list need not be gone through
        unasked = [candidate for candidate in path.unasked if candidate.state is UNASKED]
        if unasked and self._seeks_value:
            unasked = self._in_order(unasked)
        alpha = self._alpha(path, unasked)
        places = min(
            alpha - path.in_flight_count + path.slow_count,
            self._max_in_flight - len(self._in_flight),
            self._config.max_requests - self._asked,
        )
        if places <= 0:
            path.unasked = unasked
            return
        for candidate in unasked[:places]:
            self._ask(candidate, path, now)
            picked.append(candidate)
        path.unasked = unasked[places:]

    def _alpha(self, path: Path, unasked: list[Candidate]) -> int:
        """How many may be in flight on this path, slow ones aside."""
        if self._mode is LookupMode.FRESH and self._holders:
            return min(path.alpha, FRESH_GROUPS - len(self._holder_groups))  # whoever is asked will have it, mostly
        if self._mode is not LookupMode.FAST or not unasked:
            return path.alpha
        # One that needs no dial is asked alone: others beside it would mostly be asked for nothing.
        path.alone = unasked[0] if self._peers.is_connected(unasked[0].contact) else None
        return path.alpha if path.alone is None else 1

    def _in_order(self, unasked: list[Candidate]) -> list[Candidate]:
        """Inside the region anybody may have the value, so those come first that cost least and are likeliest to be
        independent of those asked before; farther out the nearest.
        """
        peers, radius, counts = self._peers, self._region.radius, self._group_counts
        inside = [candidate for candidate in unasked if candidate.distance <= radius]
        if len(inside) > 1:
            keys = {
                candidate.contact.id: (
                    counts.get(candidate.group or "", 0),
                    not peers.is_connected(candidate.contact),
                    peers.rtt_s(candidate.contact),
                    candidate.distance,
                )
                for candidate in inside
            }
            inside.sort(key=lambda candidate: keys[candidate.contact.id])
        return inside + unasked[len(inside) :] if inside else unasked

    def _ask(self, candidate: Candidate, path: Path, now: float) -> None:
        slow_s, long_s = self._peers.timeouts_s(candidate.contact)
        candidate.slow_at = now + slow_s
        candidate.fails_at = now + long_s
        self._due_at = min(self._due_at, candidate.slow_at, candidate.fails_at)
        candidate.state = IN_FLIGHT
        candidate.path = path.index
        self._in_flight[candidate.contact.id] = candidate
        path.in_flight_count += 1
        self._asked += 1
        if self._seeks_value and (group := candidate.group) is not None:
            self._group_counts[group] = self._group_counts.get(group, 0) + 1
        self._record(TraceEvent.ASKED, candidate, now, self._why(candidate, path))

    def _why(self, candidate: Candidate, path: Path) -> Why:
        if candidate.is_forced:
            return Why.SKIPPED
        if self._is_last_resort:
            return Why.RESTING
        if path.slow_count:
            return Why.BRANCH
        is_by_cost = self._seeks_value and candidate.distance <= self._region.radius
        return Why.INSIDE if is_by_cost else Why.NEAREST

    def _look_at_overdue(self, now: float) -> None:
        for sender, candidate in list(self._in_flight.items()):
            if candidate.fails_at <= now:
                self.on_failure(sender, now)
            elif candidate.slow_at <= now:
                candidate.slow_at = float("inf")
                self._paths[candidate.path].slow_count += 1
                self._slow += 1
                self._record(TraceEvent.SLOW, candidate, now)
        self._due_at = min(
            [min(candidate.slow_at, candidate.fails_at) for candidate in self._in_flight.values()],
            default=float("inf"),
        )

    def _land(self, candidate: Candidate) -> Path:
        del self._in_flight[candidate.contact.id]
        path = self._paths[candidate.path]
        path.in_flight_count -= 1
        path.slow_count -= candidate.slow_at == float("inf")
        return path

    # Who is heard of

    def _open_path(self, contacts: Iterable[Contact], *, alpha: int) -> None:
        path = Path(len(self._paths), alpha)
        self._paths.append(path)
        self._add(path, contacts, depth=1)
        path.seeds = list(path.candidates)
        for candidate in self._candidates.values():
            if candidate.state is ANSWERED:
                path.insert(candidate)

    def _open_paths(self, contacts: Sequence[Contact], count: int) -> None:
        """Deal the contacts to `count` paths, nearest first, to each its number of seeds at most."""
        seeds = contacts[: count * self._config.path_seeds]
        count = min(count, len(seeds))
        # A network that offers no more paths is not searched one by one for that.
        alpha = max(1, -(-self._config.alpha // max(1, count)))
        for start in range(count):
            self._open_path(islice(seeds, start, None, count), alpha=alpha)

    def _add(self, path: Path, contacts: Iterable[Contact], *, depth: int, informer: Candidate | None = None) -> None:
        candidates, bit, own_id, point = self._candidates, path.bit, self._own_id, self._target_point
        peers = self._peers
        for contact in contacts:
            candidate = candidates.get(contact.id)
            if candidate is not None:
                if informer is not None and candidate.state is UNASKED:
                    self._note_informer(candidate, contact, informer, path)
                if depth < candidate.depth and candidate.state is UNASKED:
                    candidate.depth = depth
                if candidate.paths & bit:
                    continue
            elif contact.id == own_id:
                continue
            else:
                candidates[contact.id] = candidate = Candidate(
                    contact, contact.point ^ point, depth, peers.group_of(contact.addresses)
                )
                if not self._is_last_resort and peers.is_resting(contact):
                    candidate.state = RESTING
                    self._has_resting = True
                if informer is not None:
                    candidate.informers.append(informer)
            path.insert(candidate)
            if len(path.candidates) > self._max_shortlist:
                dropped = path.drop_farthest_unasked()
                if dropped is not None and not dropped.paths:
                    del candidates[dropped.contact.id]

    def _note_informer(self, candidate: Candidate, contact: Contact, informer: Candidate, path: Path) -> None:
        if candidate.is_doubtful:
            # The first addresses stay, for whoever names a node later must not redirect us; but not a misleader's.
            candidate.contact = contact
            candidate.group = self._peers.group_of(contact.addresses)
            candidate.informers = [informer]
            path.outdate()
        elif candidate.informers and len(candidate.informers) < MAX_INFORMERS:
            candidate.informers.append(informer)

    def _is_asked(self, node_id: NodeID) -> bool:
        candidate = self._candidates.get(node_id)
        return candidate is not None and candidate.state is not UNASKED

    def _has_unasked(self) -> bool:
        return any(candidate.state is UNASKED for path in self._paths for candidate in path.unasked)

    def _force_skipped(self) -> bool:
        """If fewer than k answered: let the nearest of those be asked that the rules left out."""
        missing = self._wanted - self._answered
        if missing <= 0:
            return False
        skipped = {
            candidate.distance: candidate
            for path in self._paths
            for candidate in path.skipped
            if candidate.state is UNASKED
        }
        forced = [skipped[distance] for distance in sorted(skipped)[:missing]]
        for candidate in forced:
            candidate.is_forced = True
        if forced:
            for path in self._paths:
                path.outdate()
        return bool(forced)

    def _ask_farther(self) -> bool:
        """If those that answered still lie much too thinly: let the nearest be asked that no path would ask."""
        if self._has_asked_farther or not self._seeks_storers() or not self._answers().are_thin:
            return False
        self._has_asked_farther = True
        left: dict[int, tuple[Candidate, Path]] = {}
        for path in self._paths:
            for candidate in path.candidates:
                if candidate.state is UNASKED and candidate not in path.skipped:
                    left.setdefault(candidate.distance, (candidate, path))
        for distance in sorted(left)[: self._config.k]:
            candidate, path = left[distance]
            path.forced.append(candidate)
            path.outdate()
        return bool(left)

    def _seeks_storers(self) -> bool:
        """Whether those matter who are near the target, and not one value that is found already."""
        return self._mode is LookupMode.GUARDED or (self._seeks_value and not self._holders)

    def _wake_resting(self) -> bool:
        """If nobody answered: ask those that failed a moment ago. It may have been us who were not there."""
        if self._answered or not self._has_resting or self._is_last_resort:
            return False
        self._is_last_resort = True
        for candidate in self._candidates.values():
            if candidate.state is RESTING:
                candidate.state = UNASKED
        for path in self._paths:
            path.outdate()
        return True

    # When it is over

    def _has_value(self) -> bool:
        if self._mode is LookupMode.FAST:
            return bool(self._holders)
        return self._mode is LookupMode.FRESH and len(self._holder_groups) >= FRESH_GROUPS

    def _path_count_to_add(self) -> int:
        """Over how many more paths to go on; 0 for none."""
        if self._mode is LookupMode.GUARDED:
            # Whoever stores and met few of those who should keep the record was kept from them.
            return self._config.max_paths if self._answers().are_doubted(self._widened) else 0
        if not self._seeks_value:
            return 0
        if self._holders:
            is_doubted = not self._widened and self._answers().contradict(len(self._holders))
            return self._config.max_paths if is_doubted else 0
        if not self._widened:
            return self._config.paths
        return self._config.max_paths if self._answers().are_doubted(self._widened - 1) else 0

    def _answers(self) -> Answers:
        return Answers(self._region, [each.distance for each in self._candidates.values() if each.state is ANSWERED])

    def _thinned(self) -> tuple[list[Contact], list[Contact]]:
        """Those that answered, nearest first: whom density and diversity let into a list, and whom not."""
        answered = [candidate for candidate in self._candidates.values() if candidate.state is ANSWERED]
        answered.sort(key=lambda candidate: candidate.distance)
        return thin(
            [candidate.contact for candidate in answered],
            self._target,
            self._region,
            self._peers.group_of,
            max_per_group=self._config.max_per_group,
        )

    def _finish(self, *, is_complete: bool) -> Finished:
        k = self._config.k
        kept, skipped = self._thinned()
        region = tuple([contact for contact in kept if self.is_inside(contact)][: REGION_FACTOR * k])
        closest = fill(kept[:k], skipped, self._target, k)
        nearest = min(kept[:1] + skipped[:1], key=lambda contact: contact.point ^ self._target_point, default=None)
        is_thin = self._seeks_value and not self._holders and self._answers().are_thin
        newest = max((holder.version for holder in self._holders.values()), default=None)
        return Finished(
            LookupOutcome(
                target=self._target,
                closest=tuple(closest),
                hops=None if nearest is None else self._candidates[nearest.id].depth,
                asked=self._asked,
                failed=self._failed,
                found=bool(self._holders),
                complete=is_complete and not is_thin and (self._answered > 0 or self._asked == 0),
                trace=tuple(self._trace),
                region=region,
                stale=() if newest is None else tuple(c for c in region if self._is_stale(c, newest)),
                newest=newest,
                slow=self._slow,
                paths=len(self._paths),
                is_thin=is_thin,
            )
        )

    def _is_stale(self, contact: Contact, newest: int) -> bool:
        candidate = self._candidates[contact.id]
        return not candidate.has_value or candidate.version < newest

    def _record(self, event: TraceEvent, candidate: Candidate, now: float, why: Why | None = None) -> None:
        contact_id, depth, path = candidate.contact.id, candidate.depth, candidate.path
        named_by = None
        if why is not None:
            named_by = next((each.contact.id for each in candidate.informers if each.depth == depth - 1), None)
        self._trace.append(TraceStep(now, event, contact_id, depth, path, why, named_by))


def _is_in_time(candidate: Candidate | None) -> bool:
    """Whether it was asked, and is not slow yet."""
    return candidate is not None and candidate.state is IN_FLIGHT and candidate.slow_at != float("inf")


def _all_answered(candidates: list[Candidate]) -> bool:
    return all(candidate.state is ANSWERED for candidate in candidates)

"""The routing table: which contacts a node keeps, and which of them are nearest to a target.

Pure: `now` (monotonic seconds, never decreasing) and `rng` come in. It owns who stays and who is evicted; it
pings nobody. Source: Kademlia sections 2.2 and 4.1.

A contact's life, told by events:

    unknown    observed, there is room         -> live
    unknown    observed, there is none         -> waiting in the replacement cache, the last k seen
    live       observed                        -> live, most recently seen, no longer suspect
    live       observed where many others are  -> waiting
    live       a request failed                -> suspect, still live; after `max_failures` in a row unknown
    waiting    observed, there is room         -> live
    waiting    a live one left the k-bucket    -> live, the most recently seen of those for whom there is room, and
                                                  the next to be asked whether it lives
    waiting    a request failed                -> unknown

There is room while the k-bucket holds fewer than k, and no limit of diversity is reached: contacts of one /24 or /16 in
the k-bucket and in the table, and those of a far k-bucket that share their next 3 bits. A k-bucket is near, and free of
the last limit, while fewer than k contacts are in those nearer to us: then our k closest may be in it, and all of them
have to be known. A limit is asked about when a contact comes, never of one that is there.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, TypeAlias

from dht.config import RoutingConfig
from dht.contact import MAX_SHARED, Contact
from dht.keyspace import ID_BITS, Key
from dht.memo import remembered
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID
from synapse_p2p.transport.base import parse_address
from synapse_p2p.trust import TrustConfig

if TYPE_CHECKING:
    from random import Random

NEXT_BITS = 3
"""After those that tell a k-bucket from others: eight parts of it, none of which may fill it."""

NEVER = float("-inf")
"""When a contact was last seen that came from the waiting."""
STALE_PART = 0.5  # of the time for which a contact has answered: silent for so long, it is asked whether it lives
FAR_PATIENCE = 2  # times as long, in a k-bucket that is far and full: there is a choice, and a new one waiting


class Change(Enum):
    """What became of a live contact."""

    JOINED = "it entered the table"
    SUSPECTED = "it failed for the first time since it was last seen"
    LEFT = "it is not in the table any more"


Groups: TypeAlias = tuple[str, str] | None
"""The parties of an address, the narrow one first; None where limits of place do not count it."""


class Observation(Enum):
    """What became of a contact that was seen alive, and for the last four, which limit it met."""

    ADDED = "added"
    SEEN = "it was held already"
    WAITING = "its k-bucket is full of others"
    OWN = "it is this node"
    CROWDED_BITS = "too many of its k-bucket share its next bits"
    CROWDED_BUCKET = "too many of its k-bucket are in its /24 (IPv6: /48)"
    CROWDED_GROUP = "too many contacts are in its /24 (IPv6: /48)"
    CROWDED_WIDE_GROUP = "too many contacts are in its /16 (IPv6: /32)"

    @property
    def lifted_by(self) -> str:
        """The settings that let such a contact in; empty where no limit of diversity is in its way."""
        return _LIFTED_BY.get(self, "")


_LIFTED_BY = {
    Observation.CROWDED_BITS: "RoutingConfig.max_per_next_bits",
    Observation.CROWDED_BUCKET: "RoutingConfig.max_group_per_bucket, or the network in TrustConfig.networks",
    Observation.CROWDED_GROUP: "RoutingConfig.max_group, or the network in TrustConfig.networks",
    Observation.CROWDED_WIDE_GROUP: "RoutingConfig.max_wide_group, or the network in TrustConfig.networks",
}


class _KBucket:
    """At most k live contacts, in no order, and at most k waiting, in the order in which they were last seen.

    A table in columns: numbers without objects of their own take a third of the memory. The order by time is asked for
    rarely and made then; keeping it would cost more, at every answer of everybody.
    """

    __slots__ = ("contacts", "failures", "places", "seen_at", "since", "waiting")

    def __init__(self) -> None:
        self.places: dict[NodeID, int] = {}  # of the live ones, in the three columns
        self.contacts: list[Contact] = []
        self.seen_at = array("d")
        self.since = array("d")  # live from then on
        self.failures: dict[NodeID, int] = {}  # since last seen; of suspects alone
        self.waiting: dict[NodeID, Contact] | None = None  # most k-buckets have nobody waiting

    def append(self, contact: Contact, seen_at: float, since: float) -> None:
        self.places[contact.id] = len(self.contacts)
        self.contacts.append(contact)
        self.seen_at.append(seen_at)
        self.since.append(since)

    def pop(self, node_id: NodeID) -> Contact:
        """Take out a live one; the last takes its place in the columns."""
        place = self.places.pop(node_id)
        self.failures.pop(node_id, None)
        contact, last = self.contacts[place], self.contacts.pop()
        seen_at, since = self.seen_at.pop(), self.since.pop()
        if last is not contact:
            self.places[last.id] = place
            self.contacts[place], self.seen_at[place], self.since[place] = last, seen_at, since
        return contact

    def by_age(self) -> list[Contact]:
        """The live ones, least recently seen first."""
        return [self.contacts[place] for place in sorted(self.places.values(), key=self.seen_at.__getitem__)]

    def unsuspected(self) -> Sequence[Contact]:
        """The live ones who did not fail since they were last seen."""
        failures = self.failures
        if not failures:
            return self.contacts
        return [contact for contact in self.contacts if contact.id not in failures]


class RoutingTable:
    """K-buckets by the number of leading bits shared with `own_id`.

    Plain dicts and lists: the closest are in one or two k-buckets, and sorting those takes a sixth of the time that
    walking a SortedKeyList of all contacts does.

    Invariants: every contact is in the k-bucket of its prefix, never twice, never our own; only k-buckets with a live
    contact exist; of hosts that are not exempt the table never holds more live ones of one place than the limits say.
    Whose k-bucket is near can change, so the limit on next bits holds when a contact comes, and not always.

    The first address of a contact is the one that was proved, and the one that counts. `on_changed` is told of every
    change in the middle of it, so it asks nothing of the table.
    """

    def __init__(
        self,
        own_id: NodeID,
        config: RoutingConfig,
        trust: TrustConfig | None = None,
        *,
        on_changed: Callable[[Contact, Change], None] | None = None,
    ) -> None:
        self._own_id = own_id
        self._own_point = int.from_bytes(own_id, "big")
        self._config = config
        self._on_changed = on_changed or _tell_nobody
        self._groups_of = _grouping(trust or TrustConfig())
        self._kbuckets: dict[int, _KBucket] = {}
        self._indexes: list[int] = []  # of the k-buckets, ascending: few, and hardly ever another
        # Of every party that is counted: its live contacts, narrow parties and wide, and those waiting, narrow alone.
        self._live_sizes: dict[str, int] = {}
        self._waiting_sizes: dict[str, int] = {}
        self._refreshed_at: dict[int, float] = {}
        self._evictions_are_held = False

    def observe(self, contact: Contact, now: float) -> Observation:
        """This contact is alive at these addresses, proved by the caller. They replace those held before."""
        index = self._index(contact.point)
        if index == ID_BITS:
            return Observation.OWN
        kbucket = self._kbuckets.get(index)
        if kbucket is None:
            kbucket = _KBucket()
        elif (place := kbucket.places.get(contact.id)) is not None:
            if kbucket.contacts[place] is contact:
                kbucket.seen_at[place] = now
                if kbucket.failures:
                    kbucket.failures.pop(contact.id, None)
                return Observation.SEEN
            return self._renew(index, kbucket, place, contact, now)
        refusal = self._refusal(index, kbucket, contact)
        if refusal is not None:
            self._wait(kbucket, contact)
            return refusal
        if not kbucket.contacts:
            self._kbuckets[index] = kbucket
            insort(self._indexes, index)
        self._stop_waiting(kbucket, contact.id)
        self._let_in(kbucket, contact, now, now)
        self._on_changed(contact, Change.JOINED)
        return Observation.ADDED

    def on_failure(self, node_id: NodeID, now: float) -> Contact | None:
        """A request to this node failed. The contact, if that was one too many and it is evicted for it."""
        kbucket = self._kbucket_of(node_id)
        if kbucket is None:
            return None
        if node_id not in kbucket.places:
            if not self._evictions_are_held:
                self._stop_waiting(kbucket, node_id)
            return None
        failures = kbucket.failures.get(node_id, 0) + 1
        if failures < self._config.max_failures:
            kbucket.failures[node_id] = failures
        elif self._evictions_are_held:
            kbucket.failures.setdefault(node_id, 1)
        else:
            return self.remove(node_id, now)
        if failures == 1:
            self._on_changed(kbucket.contacts[kbucket.places[node_id]], Change.SUSPECTED)
        return None

    def hold_evictions(self) -> None:
        """Forget nobody for failures: it may be our own network that failed. Who fails is a suspect all the same."""
        self._evictions_are_held = True

    def resume_evictions(self) -> None:
        """Believe failures again: the next one of a suspect may be its last. What failed meanwhile is to be asked."""
        self._evictions_are_held = False

    def forgive(self, node_id: NodeID) -> None:
        """What this contact failed to do proves nothing any more: it is no suspect. A stranger stays one."""
        kbucket = self._kbucket_of(node_id)
        if kbucket is not None:
            kbucket.failures.pop(node_id, None)

    def is_suspect(self, node_id: NodeID) -> bool:
        """Whether it is a live contact that failed since it was last seen."""
        kbucket = self._kbucket_of(node_id)
        return kbucket is not None and node_id in kbucket.failures

    def seen_at(self, node_id: NodeID) -> float | None:
        """When this live contact was last seen, by the clock of `observe`; None for others."""
        kbucket = self._kbucket_of(node_id)
        place = None if kbucket is None else kbucket.places.get(node_id)
        return None if kbucket is None or place is None else kbucket.seen_at[place]

    def suspect_count(self) -> int:
        """How many live contacts failed since they were last seen."""
        return sum(len(kbucket.failures) for kbucket in self._kbuckets.values())

    def remove(self, node_id: NodeID, now: float) -> Contact | None:
        """Forget this node, live or waiting. The contact if it was live; a waiting one takes its place."""
        index = self._index(int.from_bytes(node_id, "big"))
        kbucket = self._kbuckets.get(index)
        if kbucket is None:
            return None
        self._stop_waiting(kbucket, node_id)
        return self._take_out(index, kbucket, node_id, now) if node_id in kbucket.places else None

    def get(self, node_id: NodeID) -> Contact | None:
        """The live contact with this id."""
        kbucket = self._kbucket_of(node_id)
        if kbucket is None or (place := kbucket.places.get(node_id)) is None:
            return None
        return kbucket.contacts[place]

    def __contains__(self, node_id: NodeID) -> bool:
        return self.get(node_id) is not None

    def __len__(self) -> int:
        return sum(len(kbucket.contacts) for kbucket in self._kbuckets.values())

    def __iter__(self) -> Iterator[Contact]:
        """Live contacts, farthest k-bucket first, least recently seen first within it."""
        for kbucket in self._farthest_first():
            yield from kbucket.by_age()

    def closest(self, target: Key, count: int) -> list[Contact]:
        """Up to `count` live contacts, nearest to `target` first: what sorting all of them would give.

        Cost: about `count` log `count`, over the few k-buckets that are needed. Source: Kademlia section 2.3.
        """
        return self._closest(target, count, _live)

    def closest_unsuspected(self, target: Key, count: int, *, but: NodeID | None = None) -> list[Contact]:
        """As `closest`, without suspects, for others are told of nobody who failed since last seen; nor this one, who
        asks.
        """
        return self._closest(target, count, _KBucket.unsuspected, but)

    @property
    def counts_places(self) -> bool:
        """Whether limits of place count any live contact: in many networks all are exempt."""
        return bool(self._live_sizes)

    def has_room(self, contact: Contact) -> bool:
        """Whether this contact, seen alive now, would be added: it is worth a check dial."""
        index = self._index(contact.point)
        if index == ID_BITS:
            return False
        kbucket = self._kbuckets.get(index)
        if kbucket is not None and contact.id in kbucket.places:
            return False
        return self._refusal(index, kbucket, contact) is None

    def stale_contacts(self, now: float) -> list[Contact]:
        """Of each k-bucket the contact that is most overdue, if any is.

        Due is who is silent for half of the time that it was there, but within `stale_after_s` and `max_stale_after_s`;
        a suspect after `stale_after_s`. Nodes that were there for long stay for longer (Kademlia section 2.1), so most
        of those who have gone are asked soon, and most of those who stay seldom. In k-buckets that are far and full
        all but suspects are given `FAR_PATIENCE` times as long.
        """
        stale: list[Contact] = []
        for index in self._indexes:
            kbucket = self._kbuckets[index]
            silent_s = now - min(kbucket.seen_at)
            if silent_s <= self._config.stale_after_s:
                continue  # mostly, and in a moment
            is_full = len(kbucket.contacts) == self._config.k
            patience = FAR_PATIENCE if is_full and not self._is_near(index) else 1
            if silent_s <= patience * self._config.stale_after_s and not kbucket.failures:
                continue
            overdue_s = [self._overdue_s(kbucket, place, patience, now) for place in range(len(kbucket.contacts))]
            longest_s = max(overdue_s)
            if longest_s > 0:
                stale.append(kbucket.contacts[overdue_s.index(longest_s)])
        return stale

    def _overdue_s(self, kbucket: _KBucket, place: int, patience: int, now: float) -> float:
        seen_at, config = kbucket.seen_at[place], self._config
        patience_s = config.stale_after_s
        if seen_at != NEVER and kbucket.contacts[place].id not in kbucket.failures:
            lived_s = seen_at - kbucket.since[place]
            patience_s = patience * min(max(patience_s, STALE_PART * lived_s), config.max_stale_after_s)
        return now - seen_at - patience_s

    def stale_buckets(self, now: float, age_s: float) -> list[int]:
        """Indexes from 0 to the deepest k-bucket that no lookup went through for `age_s`, ascending.

        Empty ones are included: that nobody is known there does not mean that nobody is there.
        """
        if not self._kbuckets:
            return []
        deepest = self._indexes[-1]
        refreshed_at = self._refreshed_at
        return [index for index in range(deepest + 1) if index not in refreshed_at or now - refreshed_at[index] > age_s]

    def mark_refreshed(self, index: int, now: float) -> None:
        """A lookup for a key in this k-bucket was made."""
        if not 0 <= index < ID_BITS:
            raise ValueError(f"a k-bucket's index is 0 to {ID_BITS - 1}, not {index}")
        self._refreshed_at[index] = now

    def sample(self, count: int, rng: Random) -> list[Contact]:
        """Up to `count` random unsuspected contacts, in random order. Cost: O(n) over contacts held."""
        unsuspected = [contact for kbucket in self._farthest_first() for contact in kbucket.unsuspected()]
        return rng.sample(unsuspected, min(count, len(unsuspected)))

    def longest_lived(self, count: int) -> list[Contact]:
        """Up to `count` unsuspected contacts, first those who have answered longest, less how long they are silent.

        How long a node has been there is the best sign of how long it will be. Cost: O(n log n) over contacts held.
        """
        rows: list[tuple[float, Contact]] = []
        for kbucket in self._farthest_first():
            for contact, seen_at, since in zip(kbucket.contacts, kbucket.seen_at, kbucket.since, strict=True):
                if contact.id not in kbucket.failures:
                    # (seen_at - since) - (now - seen_at), without the `now` that all have in common.
                    rows.append((2 * seen_at - since, contact))
        rows.sort(key=itemgetter(0), reverse=True)
        return [contact for _, contact in rows[:count]]

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        config = self._config
        live: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        assert self._indexes == sorted(self._kbuckets)
        for index, kbucket in self._kbuckets.items():
            assert 0 < len(kbucket.contacts) <= config.k
            assert list(kbucket.places) == [kbucket.contacts[place].id for place in kbucket.places.values()]
            assert sorted(kbucket.places.values()) == list(range(len(kbucket.contacts)))
            assert len(kbucket.contacts) == len(kbucket.seen_at) == len(kbucket.since)
            assert kbucket.failures.keys() <= kbucket.places.keys()
            assert all(0 < failures < max(2, config.max_failures) for failures in kbucket.failures.values())
            in_bucket = Counter(group for group, _ in self._counted(kbucket.contacts))
            assert all(size <= config.max_group_per_bucket for size in in_bucket.values())
            live.update(group for groups in self._counted(kbucket.contacts) for group in groups)
            cache = kbucket.waiting or {}
            assert len(cache) <= config.k
            assert list(cache) == [contact.id for contact in cache.values()]
            assert not cache.keys() & kbucket.places.keys()
            waiting.update(group for group, _ in self._counted(cache.values()))
            for contact in (*kbucket.contacts, *cache.values()):
                assert contact.id != self._own_id
                assert self._index(contact.point) == index
        assert live == self._live_sizes
        assert waiting == self._waiting_sizes
        assert all(size <= config.max_group for size in waiting.values())
        for kbucket in self._farthest_first():
            for group, wide_group in self._counted(kbucket.contacts):
                assert live[group] <= config.max_group
                assert live[wide_group] <= config.max_wide_group

    def _counted(self, contacts: Iterable[Contact]) -> Iterator[tuple[str, str]]:
        return (groups for contact in contacts if (groups := self._groups_of(contact.addresses)) is not None)

    # Who comes and goes

    def _renew(self, index: int, kbucket: _KBucket, place: int, contact: Contact, now: float) -> Observation:
        """A live contact may have other addresses now. Where too many are it waits: nobody gets round the limits by
        moving in later.
        """
        if self._groups_of(contact.addresses) == self._groups_of(kbucket.contacts[place].addresses):
            kbucket.failures.pop(contact.id, None)
            kbucket.contacts[place], kbucket.seen_at[place] = contact, now
            return Observation.SEEN
        since = kbucket.since[place]
        self._count(kbucket.pop(contact.id), -1)
        refusal = self._crowd(kbucket, contact)
        if refusal is None:
            self._let_in(kbucket, contact, now, since)
            return Observation.SEEN
        self._on_changed(contact, Change.LEFT)
        self._after_leaving(index, kbucket, now)
        self._wait(kbucket, contact)
        return refusal

    def _let_in(self, kbucket: _KBucket, contact: Contact, seen_at: float, since: float) -> None:
        self._count(contact, 1)
        kbucket.append(contact, seen_at, since)

    def _take_out(self, index: int, kbucket: _KBucket, node_id: NodeID, now: float) -> Contact:
        contact = kbucket.pop(node_id)
        self._count(contact, -1)
        self._on_changed(contact, Change.LEFT)
        self._after_leaving(index, kbucket, now)
        return contact

    def _after_leaving(self, index: int, kbucket: _KBucket, now: float) -> None:
        """Let in the most recently seen of the waiting for whom there is room; without a live one the k-bucket goes."""
        for contact in reversed((kbucket.waiting or {}).values()):
            if self._refusal(index, kbucket, contact) is None:
                self._stop_waiting(kbucket, contact.id)
                self._let_in(kbucket, contact, NEVER, now)
                self._on_changed(contact, Change.JOINED)
                return
        if not kbucket.contacts:
            for node_id in tuple(kbucket.waiting or ()):
                self._stop_waiting(kbucket, node_id)
            del self._kbuckets[index]
            self._indexes.remove(index)

    def _wait(self, kbucket: _KBucket, contact: Contact) -> None:
        """Note who may come in later. Behind nobody there is no waiting: who is seen again is asked about again."""
        if not kbucket.contacts:
            return
        waiting = kbucket.waiting
        if waiting is None:
            waiting = kbucket.waiting = {}
        elif contact.id in waiting:
            self._stop_waiting(kbucket, contact.id)
        groups = self._groups_of(contact.addresses)
        if groups is not None:
            # One place waits with no more than could be let in, or its many ids would push everybody else out.
            if self._waiting_sizes.get(groups[0], 0) >= self._config.max_group:
                return
            _change(self._waiting_sizes, groups[0], 1)
        if len(waiting) >= self._config.k:
            self._stop_waiting(kbucket, next(iter(waiting)))
        waiting[contact.id] = contact

    def _stop_waiting(self, kbucket: _KBucket, node_id: NodeID) -> None:
        if kbucket.waiting and (contact := kbucket.waiting.pop(node_id, None)) is not None:
            groups = self._groups_of(contact.addresses)
            if groups is not None:
                _change(self._waiting_sizes, groups[0], -1)

    # Whether there is room

    def _refusal(self, index: int, kbucket: _KBucket | None, contact: Contact) -> Observation | None:
        """Why a contact that is not live is not let into this k-bucket; None if it is. No k-bucket is an empty one."""
        if kbucket is not None:
            if len(kbucket.contacts) >= self._config.k:
                return Observation.WAITING
            if self._is_crowded_by_bits(index, kbucket, contact):
                return Observation.CROWDED_BITS
        return self._crowd(kbucket, contact)

    def _is_crowded_by_bits(self, index: int, kbucket: _KBucket, contact: Contact) -> bool:
        limit = self._config.max_per_next_bits
        free_bits = ID_BITS - 1 - index - NEXT_BITS
        if len(kbucket.contacts) < limit or free_bits < 0:
            return False
        point, too_far = contact.point, 1 << free_bits
        sharing = [other for other in kbucket.contacts if other.point ^ point < too_far]
        return len(sharing) >= limit and not self._is_near(index)

    def _is_near(self, index: int) -> bool:
        """Whether fewer than k contacts are in k-buckets nearer to us than this one."""
        nearer = 0
        for other in reversed(self._indexes):
            if other <= index:
                break
            nearer += len(self._kbuckets[other].contacts)
            if nearer >= self._config.k:
                return False
        return True

    def _crowd(self, kbucket: _KBucket | None, contact: Contact) -> Observation | None:
        """Which limit of place this contact would exceed."""
        groups = self._groups_of(contact.addresses)
        if groups is None:
            return None
        config = self._config
        group, wide_group = groups
        size = self._live_sizes.get(group, 0)
        if size >= config.max_group_per_bucket and kbucket is not None:
            in_bucket = sum(self._groups_of(other.addresses) == groups for other in kbucket.contacts)
            if in_bucket >= config.max_group_per_bucket:
                return Observation.CROWDED_BUCKET
        if size >= config.max_group:
            return Observation.CROWDED_GROUP
        if self._live_sizes.get(wide_group, 0) >= config.max_wide_group:
            return Observation.CROWDED_WIDE_GROUP
        return None

    def _count(self, contact: Contact, change: int) -> None:
        for group in self._groups_of(contact.addresses) or ():
            _change(self._live_sizes, group, change)

    # Where things are

    def _index(self, point: int) -> int:
        """Leading bits shared with our own id; 256 for our own id, where no k-bucket is."""
        return ID_BITS - (point ^ self._own_point).bit_length()

    def _kbucket_of(self, node_id: NodeID) -> _KBucket | None:
        return self._kbuckets.get(self._index(int.from_bytes(node_id, "big")))

    def _farthest_first(self) -> Iterator[_KBucket]:
        return (self._kbuckets[index] for index in self._indexes)

    def _closest(
        self, target: Key, count: int, of: Callable[[_KBucket], Sequence[Contact]], but: NodeID | None = None
    ) -> list[Contact]:
        """The nearest of those whom `of` takes from each k-bucket, `but` one."""
        point = int.from_bytes(target, "big")
        left_out = -1 if but is None else int.from_bytes(but, "big") ^ point
        # No two have one distance, and numbers are sorted without a call for each.
        by_distance: dict[int, Contact] = {}
        for kbucket in self._nearest_kbuckets(point):
            by_distance |= {contact.point ^ point: contact for contact in of(kbucket)}
            by_distance.pop(left_out, None)
            if len(by_distance) >= count:
                break
        return [by_distance[distance] for distance in sorted(by_distance)[:count]]

    def _nearest_kbuckets(self, target_point: int) -> Iterator[_KBucket]:
        """All k-buckets, so that everything in one is nearer to the target than everything in the next.

        Let d = own XOR target, and b the index of d's highest bit. A contact of k-bucket i differs from us
        first in bit i, so its distance to the target is d with bit i flipped and the bits after i arbitrary.
        Hence b comes first (its bit b is cleared); then the k-buckets above b, whose distances keep bit b:
        k-bucket i is nearer than all above it where bit i of d is set (theirs stays set), and farther where
        it is not; then those below b, which set a bit above bit b, the highest index first. No two k-buckets
        overlap, so the order is exact.
        """
        gap = target_point ^ self._own_point
        first = ID_BITS - gap.bit_length()
        kbuckets, indexes = self._kbuckets, self._indexes
        if first in kbuckets:
            yield kbuckets[first]
        place = bisect_left(indexes, first)  # of the first k-bucket that is not above
        unset: list[_KBucket] = []
        for index in indexes[place + (first in kbuckets) :]:
            if gap >> (ID_BITS - 1 - index) & 1:
                yield kbuckets[index]
            else:
                unset.append(kbuckets[index])
        yield from reversed(unset)
        for index in reversed(indexes[:place]):
            yield kbuckets[index]


_live = attrgetter("contacts")


def _tell_nobody(contact: Contact, change: Change) -> None:
    pass


def _change(sizes: dict[str, int], group: str, change: int) -> None:
    sizes[group] = sizes.get(group, 0) + change
    if not sizes[group]:
        del sizes[group]


@lru_cache(maxsize=8)
def _grouping(trust: TrustConfig) -> Callable[[tuple[str, ...]], Groups]:
    """The parties of a contact's addresses, remembered: tables ask again and again, and all of a process ask alike."""

    @remembered(MAX_SHARED)
    def groups_of(addresses: tuple[str, ...]) -> Groups:
        if not addresses:
            return None
        try:
            host, _ = parse_address(addresses[0])
        except ConfigError:
            host = addresses[0]
        return None if trust.is_exempt(host) else (trust.group_of(host), trust.wide_group_of(host))

    return groups_of

"""The routing table: which contacts a node keeps, and which of them are nearest to a target.

Pure: `now` (monotonic seconds, never decreasing) and `rng` come in. It owns who stays and who is evicted; it
pings nobody. Source: Kademlia sections 2.2 and 4.1.

A contact's life, told by events:

    unknown    observed, k-bucket has room     -> live
    unknown    observed, k-bucket is full      -> waiting in the replacement cache, the last k seen
    live       observed                        -> live, most recently seen, no longer suspect
    live       a request failed                -> suspect, still live; after `max_failures` in a row unknown
    waiting    a live one left the k-bucket    -> live, the most recently seen of the waiting first
    waiting    a request failed                -> unknown
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING

from dht.config import RoutingConfig
from dht.contact import Contact
from dht.keyspace import ID_BITS, Key
from synapse_p2p.identity import NodeID

if TYPE_CHECKING:
    from random import Random


class Observation(Enum):
    """What became of a contact that was seen alive."""

    ADDED = "added"
    SEEN = "seen"  # it was held already
    WAITING = "waiting"  # its k-bucket is full of others
    OWN = "own"


class _KBucket:
    """At most k live contacts, least recently seen first, and at most k waiting, in the same order.

    Three dicts instead of one of mutable entries: `contacts.values()` can then be sorted as it is, and
    whether a k-bucket holds suspects at all is one truth test.
    """

    __slots__ = ("contacts", "failures", "replacement_cache", "seen_at")

    def __init__(self) -> None:
        self.contacts: dict[NodeID, Contact] = {}
        self.seen_at: dict[NodeID, float] = {}  # of every contact held
        self.failures: dict[NodeID, int] = {}  # since last seen; of suspects alone
        self.replacement_cache: dict[NodeID, tuple[Contact, float]] = {}  # with the time it was seen


class RoutingTable:
    """K-buckets by the number of leading bits shared with `own_id`.

    Invariants: every contact is in the k-bucket of its prefix, never twice, never our own; only k-buckets
    that hold a contact exist; contacts wait only behind a full k-bucket.
    """

    def __init__(self, own_id: NodeID, config: RoutingConfig) -> None:
        self._own_id = own_id
        self._own_point = int.from_bytes(own_id, "big")
        self._config = config
        self._kbuckets: dict[int, _KBucket] = {}
        self._indexes: list[int] = []  # of the k-buckets, ascending: few, and hardly ever another
        self._refreshed_at: dict[int, float] = {}

    def observe(self, contact: Contact, now: float) -> Observation:
        """This contact is alive at these addresses, proved by the caller. They replace those held before."""
        if contact.id == self._own_id:
            return Observation.OWN
        index = self._index(contact.point)
        kbucket = self._kbuckets.get(index)
        if kbucket is None:
            kbucket = self._kbuckets[index] = _KBucket()
            insort(self._indexes, index)
        if contact.id in kbucket.contacts:
            del kbucket.contacts[contact.id]
            kbucket.failures.pop(contact.id, None)
            _append(kbucket, contact, now)
            return Observation.SEEN
        if len(kbucket.contacts) < self._config.k:
            _append(kbucket, contact, now)
            return Observation.ADDED
        self._wait(kbucket, contact, now)
        return Observation.WAITING

    def on_failure(self, node_id: NodeID, now: float) -> Contact | None:
        """A request to this node failed. The contact, if that was one too many and it is evicted for it."""
        kbucket = self._kbucket_of(node_id)
        if kbucket is None:
            return None
        if node_id not in kbucket.contacts:
            kbucket.replacement_cache.pop(node_id, None)
            return None
        failures = kbucket.failures.get(node_id, 0) + 1
        if failures >= self._config.max_failures:
            return self.remove(node_id)
        kbucket.failures[node_id] = failures
        return None

    def remove(self, node_id: NodeID) -> Contact | None:
        """Forget this node, live or waiting. The contact if it was live; a waiting one takes its place."""
        kbucket = self._kbucket_of(node_id)
        if kbucket is None:
            return None
        kbucket.replacement_cache.pop(node_id, None)
        contact = kbucket.contacts.pop(node_id, None)
        if contact is None:
            return None
        del kbucket.seen_at[node_id]
        kbucket.failures.pop(node_id, None)
        if kbucket.replacement_cache:
            _promote(kbucket)
        elif not kbucket.contacts:
            index = self._index(contact.point)
            del self._kbuckets[index]
            self._indexes.remove(index)
        return contact

    def get(self, node_id: NodeID) -> Contact | None:
        """The live contact with this id."""
        kbucket = self._kbucket_of(node_id)
        return None if kbucket is None else kbucket.contacts.get(node_id)

    def __contains__(self, node_id: NodeID) -> bool:
        return self.get(node_id) is not None

    def __len__(self) -> int:
        return sum(len(kbucket.contacts) for kbucket in self._kbuckets.values())

    def __iter__(self) -> Iterator[Contact]:
        """Live contacts, farthest k-bucket first, least recently seen first within it."""
        for kbucket in self._farthest_first():
            yield from kbucket.contacts.values()

    def closest(self, target: Key, count: int) -> list[Contact]:
        """Up to `count` live contacts, nearest to `target` first: what sorting all of them would give.

        Cost: about `count` log `count`, over the few k-buckets that are needed. Source: Kademlia section 2.3.
        """
        point = int.from_bytes(target, "big")
        found: dict[int, Contact] = {}  # by distance, which no two share
        for kbucket in self._nearest_kbuckets(point):
            for contact in kbucket.contacts.values():
                found[contact.point ^ point] = contact
            if len(found) >= count:
                break
        return [found[distance] for distance in sorted(found)[:count]]

    def closest_unsuspected(self, target: Key, count: int) -> list[Contact]:
        """As `closest`, without suspects: others are told of nobody who failed since last seen."""
        point = int.from_bytes(target, "big")
        found: dict[int, Contact] = {}
        for kbucket in self._nearest_kbuckets(point):
            for contact in _unsuspected(kbucket):
                found[contact.point ^ point] = contact
            if len(found) >= count:
                break
        return [found[distance] for distance in sorted(found)[:count]]

    def has_room(self, node_id: NodeID) -> bool:
        """Whether this node, seen alive now, would be added: it is worth a check dial."""
        if node_id == self._own_id:
            return False
        kbucket = self._kbucket_of(node_id)
        return kbucket is None or (node_id not in kbucket.contacts and len(kbucket.contacts) < self._config.k)

    def stale_contacts(self, now: float) -> list[Contact]:
        """Of each k-bucket the least recently seen contact, where that was over `stale_after_s` ago."""
        stale: list[Contact] = []
        for kbucket in self._farthest_first():
            node_id, contact = next(iter(kbucket.contacts.items()))
            if now - kbucket.seen_at[node_id] > self._config.stale_after_s:
                stale.append(contact)
        return stale

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
        unsuspected = [contact for kbucket in self._farthest_first() for contact in _unsuspected(kbucket)]
        return rng.sample(unsuspected, min(count, len(unsuspected)))

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        k = self._config.k
        assert self._indexes == sorted(self._kbuckets)
        for index, kbucket in self._kbuckets.items():
            assert 0 < len(kbucket.contacts) <= k
            assert len(kbucket.replacement_cache) <= k
            assert not kbucket.replacement_cache or len(kbucket.contacts) == k
            assert not kbucket.replacement_cache.keys() & kbucket.contacts.keys()
            assert kbucket.seen_at.keys() == kbucket.contacts.keys()
            assert kbucket.failures.keys() <= kbucket.contacts.keys()
            assert all(0 < failures < self._config.max_failures for failures in kbucket.failures.values())
            for node_id, contact in kbucket.contacts.items():
                assert node_id == contact.id != self._own_id
                assert self._index(contact.point) == index
            for node_id, (contact, _) in kbucket.replacement_cache.items():
                assert node_id == contact.id != self._own_id
                assert self._index(contact.point) == index
            seen = [kbucket.seen_at[node_id] for node_id in kbucket.contacts]
            assert seen == sorted(seen)
            waiting = [seen_at for _, seen_at in kbucket.replacement_cache.values()]
            assert waiting == sorted(waiting)

    def _index(self, point: int) -> int:
        """Leading bits shared with our own id; 256 for our own id, where no k-bucket is."""
        return ID_BITS - (point ^ self._own_point).bit_length()

    def _kbucket_of(self, node_id: NodeID) -> _KBucket | None:
        return self._kbuckets.get(self._index(int.from_bytes(node_id, "big")))

    def _wait(self, kbucket: _KBucket, contact: Contact, now: float) -> None:
        cache = kbucket.replacement_cache
        cache.pop(contact.id, None)
        if len(cache) >= self._config.k:
            del cache[next(iter(cache))]
        cache[contact.id] = (contact, now)

    def _farthest_first(self) -> Iterator[_KBucket]:
        return (self._kbuckets[index] for index in self._indexes)

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


def _append(kbucket: _KBucket, contact: Contact, now: float) -> None:
    kbucket.contacts[contact.id] = contact
    kbucket.seen_at[contact.id] = now


def _promote(kbucket: _KBucket) -> None:
    """Let in the most recently seen of the waiting, at the place that the time it was seen gives it."""
    _, (contact, seen_at) = kbucket.replacement_cache.popitem()
    _append(kbucket, contact, seen_at)
    order = sorted(kbucket.contacts.values(), key=lambda held: kbucket.seen_at[held.id])
    kbucket.contacts = {held.id: held for held in order}


def _unsuspected(kbucket: _KBucket) -> Iterable[Contact]:
    if not kbucket.failures:
        return kbucket.contacts.values()
    return [contact for node_id, contact in kbucket.contacts.items() if node_id not in kbucket.failures]

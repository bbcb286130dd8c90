"""Has one agent's record live on at its storers: to each of them one small request, for all places where it keeps it.

It says what they answered, place by place; what is to be done about those who do not keep it any more is decided in
`announcing.py`. The renewal itself is in `agents/renewal.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dht.contact import Contact
from dht.messages import MAX_RENEWED_PLACES, RecordPlace, Renew, StoreAnswer
from dht.putting import MAX_STORES_AT_ONCE, UNREACHED, Placing
from dht.requester import UNREACHABLE, Requester
from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import InvalidMessageError, RemoteError
from synapse_p2p.identity import NodeID

WATCHERS = 3
"""The nearest storers of a key, who are asked which nodes are near it by now: one may be dead, and one may lie."""


@dataclass(frozen=True, slots=True)
class HeldPlace:
    """A place of a record, and who keeps it there, nearest to the key first."""

    place: RecordPlace
    storers: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one storer is asked for in one request; it watches the first `watched` of the places."""

    storer: Contact
    places: tuple[RecordPlace, ...]
    watched: int


def batches_of(held: Sequence[HeldPlace]) -> list[Batch]:
    """The requests to all storers of these places: every storer has each of its places in one of them."""
    watched: dict[NodeID, list[RecordPlace]] = {}
    others: dict[NodeID, list[RecordPlace]] = {}
    storers: dict[NodeID, Contact] = {}
    for each in held:
        for number, storer in enumerate(each.storers):
            storers.setdefault(storer.id, storer)
            (watched if number < WATCHERS else others).setdefault(storer.id, []).append(each.place)
    batches: list[Batch] = []
    for storer_id, storer in storers.items():
        first = watched.get(storer_id, [])
        places = (*first, *others.get(storer_id, []))
        for start in range(0, len(places), MAX_RENEWED_PLACES):
            chunk = places[start : start + MAX_RENEWED_PLACES]
            batches.append(Batch(storer, chunk, min(len(chunk), max(0, len(first) - start))))
    return batches


async def renew(requester: Requester, renewal: bytes, held: Sequence[HeldPlace]) -> dict[RecordPlace, Placing]:
    """What the storers of each place say to this renewal. Cost: a request to each storer, however many the places."""
    placings = {each.place: Placing() for each in held}
    turns = asyncio.Semaphore(MAX_STORES_AT_ONCE)

    async def ask(batch: Batch) -> None:
        async with turns:
            answers = await _ask(requester, Renew(renewal, batch.places, batch.watched), batch.storer)
        for place, answer in zip(batch.places, answers, strict=True):
            placings[place].note(batch.storer, answer)

    async with TaskScope("renew") as scope:
        for task in [scope.spawn_awaited(ask(batch)) for batch in batches_of(held)]:
            await task
    return placings


async def _ask(requester: Requester, request: Renew, storer: Contact) -> Sequence[StoreAnswer | str]:
    """Its answer for each place, or a word where there is none."""
    try:
        return (await requester.renew(storer, request)).places
    except UNREACHABLE:
        word = UNREACHED
    except (RemoteError, InvalidMessageError):
        word = "bad_answer"
    return [word] * len(request.places)

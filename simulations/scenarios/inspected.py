"""What the scenarios with faults share: members of a world, who looks on, and searches."""

from __future__ import annotations

from dataclasses import dataclass

from dht.config import DHTConfig
from simulations.checkers import AtMostOnce, Caps, Deadlines, Durability, Inspector, MonotonicReads, Signatures
from simulations.history import History
from simulations.members import Member, Members
from simulations.scenarios.base import MAX_NOTES, Outcome, Progress, Settings, Start
from simulations.world import JOIN_PAUSE_S, World


@dataclass(frozen=True, slots=True)
class Inspected:
    """Members and those who look on, put together."""

    members: Members
    history: History
    inspector: Inspector
    durability: Durability


def inspect_members(world: World, config: DHTConfig) -> Inspected:
    """No members yet, and every rule looked after."""
    history = History(world.network.awake_s)
    members = Members(world, history, config)
    durability = Durability(history, members.alive)
    checkers = (
        Signatures(history, config.records),
        MonotonicReads(history),
        durability,
        Caps(members.amounts, at_the_end=members.all_amounts),
        Deadlines(history),
        AtMostOnce(history),
    )
    return Inspected(members, history, Inspector(checkers), durability)


async def grow(inspected: Inspected, settings: Settings, progress: Progress) -> list[Member]:
    """All members, as the settings say: by protocol they join JOIN_PAUSE_S apart, and may still be joining.

    The oracle takes no time, and all of them publish at once.
    """
    if settings.start is Start.ORACLE:
        inspected.members.add_at_once(settings.nodes)
        progress("join", settings.nodes, settings.nodes)
        return list(inspected.members.all)
    added: list[Member] = []
    for count in range(1, settings.nodes + 1):
        added.append(inspected.members.add())
        await inspected.inspector.watch(JOIN_PAUSE_S)
        progress("join", count, settings.nodes)
    return added


class Finds:
    """Searches of random members for random others, and how they went."""

    def __init__(self, members: Members) -> None:
        self.count = 0
        self.successes = 0
        self.notes: list[str] = []
        self._members = members

    async def find_one(self) -> None:
        """One search, for somebody whose record is known to be kept when it begins; nothing where there is nobody.

        A search counts as failed only if both were there from its beginning to its end.
        """
        world = self._members.world
        alive = self._members.alive()
        published = [member for member in alive if member.is_published]
        if len(alive) < 2 or not published:
            return
        searcher, owner = world.rng.choice(alive), world.rng.choice(published)
        lives = searcher.life, owner.life
        began_at_s = world.network.loop.time()
        is_found = await searcher.find(owner)
        if not is_found and (searcher.life, owner.life) != lives:
            return
        self.count += 1
        self.successes += is_found
        world.note_lookup("search", began_at_s, is_success=is_found)
        if not is_found and len(self.notes) < MAX_NOTES:
            at_s = world.network.loop.time()
            self.notes.append(f"at {at_s:.6f} s {searcher.id.hex()} did not find {owner.id.hex()}, {owner.capability}")

    def outcome(self, required_success: float, figures: dict[str, int | float | str] | None = None) -> Outcome:
        """So far. Searches for records have no hops to tell of."""
        return Outcome(self.count, self.successes, (), self.notes, required_success, figures or {})

"""A GossipSub mesh for one topic, and the cache of announcements that were overheard on it. Pure.

Source: the specification of GossipSub 1.0, with the back-off after a PRUNE of 1.1. A message goes to all of the mesh at
once; every heartbeat says to some others which messages came lately, and they ask for what they lack.

    nobody      heartbeat: fewer than D_low in the mesh -> GRAFT to others until there are D
    in mesh     GRAFT received and fewer than D_high are in it; else PRUNE is the answer
    gone        PRUNE received, or its connection broke; after a PRUNE it is left alone for a minute
    too many    heartbeat: more than D_high -> PRUNE to some until there are D

Left out are what defends a mesh against hostile peers (scores, outbound quotas), for all are honest here, and topics:
there is one, and everybody is in it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.discovery_designs.agent import Held
from synapse_p2p.identity import NodeID

MESSAGE_ID_SIZE_BYTES = 40
"""The author's id and its number, as GossipSub's default is."""
MAX_CACHED = 100_000
"""Agents in a cache. agntcy/dir names no bound; somebody has to."""

PUBLISH, IHAVE, IWANT = "gossip.publish", "gossip.ihave", "gossip.iwant"
GRAFT, PRUNE = "gossip.graft", "gossip.prune"


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """The defaults of the specification."""

    d: int = 6  # peers in the mesh that are aimed at
    d_low: int = 4
    d_high: int = 12
    d_lazy: int = 6  # others who are told at a heartbeat what came lately
    heartbeat_s: float = 1.0
    history_length: int = 5  # heartbeats for which a message can be asked for
    history_gossip: int = 3  # and for which it is told of
    seen_s: float = 120.0
    prune_backoff_s: float = 60.0
    max_ids: int = 5000  # in one message: go-libp2p-pubsub's MaxIHaveLength


@dataclass(frozen=True, slots=True)
class Send:
    """One message to one peer, one way. `body` is a message id and a payload, or ids in a row, or nothing."""

    target: NodeID
    kind: str
    body: bytes = b""


class GossipCache:
    """Who was overheard, and until when it is believed.

    Invariant: at most `max_entries`; past that whoever was heard longest ago goes.
    """

    def __init__(self, life_s: float, *, max_entries: int = MAX_CACHED) -> None:
        self._life_s = life_s
        self._max_entries = max_entries
        self._heard: OrderedDict[NodeID, tuple[int, int, float]] = (
            OrderedDict()
        )  # seq, bytes, until; by time of hearing

    def hear(self, owner: NodeID, seq: int, size_bytes: int, now: float) -> bool:
        """An announcement came. Whether it is news: an older one than is held changes nothing."""
        held = self._heard.get(owner)
        if held is not None and held[0] >= seq:
            return False
        self._heard[owner] = (seq, size_bytes, now + self._life_s)
        self._heard.move_to_end(owner)
        if len(self._heard) > self._max_entries:
            self._heard.popitem(last=False)
        return True

    def live(self, now: float) -> list[NodeID]:
        """Those who are believed, oldest news first. What is over is forgotten."""
        while self._heard and next(iter(self._heard.values()))[2] <= now:
            self._heard.popitem(last=False)
        return list(self._heard)

    def held(self, now: float) -> Held:
        """How many, and their bytes."""
        return Held(len(self.live(now)), sum(size_bytes for _, size_bytes, _ in self._heard.values()))

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        assert len(self._heard) <= self._max_entries
        ends = [until for _, _, until in self._heard.values()]
        assert ends == sorted(ends)


class GossipRouter:
    """One node's place in the mesh. Everything that happens answers with what is to be sent; nobody is sent to twice
    in one answer, and never ourselves.

    Invariant: at most `d_high` in the mesh after a heartbeat, and none of them is ourselves.
    """

    def __init__(self, own_id: NodeID, rng: Random, config: GossipConfig | None = None) -> None:
        self._own_id = own_id
        self._rng = rng
        self._config = config or GossipConfig()
        self._mesh: dict[NodeID, None] = {}
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # until when, in order
        self._history: deque[dict[bytes, bytes]] = deque([{}], maxlen=self._config.history_length)  # newest first
        self._backoff: dict[NodeID, float] = {}  # until when nobody grafts

    @property
    def mesh(self) -> tuple[NodeID, ...]:
        """Who gets every message at once."""
        return tuple(self._mesh)

    @property
    def is_idle(self) -> bool:
        """Whether a heartbeat would do nothing."""
        return len(self._mesh) >= self._config.d_low and not any(self._history)

    def publish(self, message_id: bytes, payload: bytes, now: float) -> list[Send]:
        """A message of our own."""
        return self._spread(message_id, payload, now, but=None)

    def on_publish(self, sender: NodeID, body: bytes, now: float) -> tuple[bytes, bytes, list[Send]] | None:
        """Somebody's message came: its id and payload and to whom it goes on; None for one that came before."""
        message_id, payload = body[:MESSAGE_ID_SIZE_BYTES], body[MESSAGE_ID_SIZE_BYTES:]
        if len(message_id) != MESSAGE_ID_SIZE_BYTES or message_id in self._seen:
            return None
        return message_id, payload, self._spread(message_id, payload, now, but=sender)

    def on_ihave(self, sender: NodeID, body: bytes) -> list[Send]:
        """Somebody says what came lately: ask for what did not come here."""
        wanted = [each for each in _ids(body, self._config.max_ids) if each not in self._seen]
        return [Send(sender, IWANT, b"".join(wanted))] if wanted else []

    def on_iwant(self, sender: NodeID, body: bytes) -> list[Send]:
        """Somebody asks for messages: those that are still here."""
        answers = []
        for wanted in _ids(body, self._config.max_ids):
            payload = next((window[wanted] for window in self._history if wanted in window), None)
            if payload is not None:
                answers.append(Send(sender, PUBLISH, wanted + payload))
        return answers

    def on_graft(self, sender: NodeID, now: float) -> list[Send]:
        """Somebody takes us into its mesh; it is taken into ours, if there is room."""
        if sender in self._mesh:
            return []
        if sender == self._own_id or len(self._mesh) >= self._config.d_high or self._is_backing_off(sender, now):
            return [Send(sender, PRUNE)]
        self._mesh[sender] = None
        return []

    def on_prune(self, sender: NodeID, now: float) -> None:
        """Somebody does not want us in its mesh."""
        self._mesh.pop(sender, None)
        self._backoff[sender] = now + self._config.prune_backoff_s

    def on_gone(self, peer: NodeID) -> None:
        """A connection broke."""
        self._mesh.pop(peer, None)

    def heartbeat(self, now: float, known: Sequence[NodeID]) -> list[Send]:
        """Due every `heartbeat_s`. `known` are peers in the topic with whom one can connect, in random order."""
        config = self._config
        while self._seen and next(iter(self._seen.values())) <= now:
            self._seen.popitem(last=False)
        self._backoff = {peer: until for peer, until in self._backoff.items() if until > now}
        others = [peer for peer in known if peer != self._own_id and peer not in self._mesh]
        sends: list[Send] = []
        if len(self._mesh) < config.d_low:
            grafted = [peer for peer in others if peer not in self._backoff][: config.d - len(self._mesh)]
            self._mesh |= dict.fromkeys(grafted)
            sends += [Send(peer, GRAFT) for peer in grafted]
            others = [peer for peer in others if peer not in self._mesh]
        elif len(self._mesh) > config.d_high:
            for peer in self._rng.sample(list(self._mesh), len(self._mesh) - config.d):
                del self._mesh[peer]
                self._backoff[peer] = now + config.prune_backoff_s
                sends.append(Send(peer, PRUNE))
        told = {each: None for window in list(self._history)[: config.history_gossip] for each in window}
        if told:
            body = b"".join(list(told)[: config.max_ids])
            pruned = {send.target for send in sends}
            lazy = [peer for peer in others if peer not in pruned][: config.d_lazy]
            sends += [Send(peer, IHAVE, body) for peer in lazy]
        self._history.appendleft({})
        return sends

    def check_invariants(self) -> None:
        """Assert what the class promises; for tests."""
        assert self._own_id not in self._mesh
        assert len(self._mesh) <= self._config.d_high
        assert 1 <= len(self._history) <= self._config.history_length
        assert all(message_id in self._seen for window in self._history for message_id in window)

    def _spread(self, message_id: bytes, payload: bytes, now: float, *, but: NodeID | None) -> list[Send]:
        self._seen[message_id] = now + self._config.seen_s
        self._history[0][message_id] = payload
        body = message_id + payload
        author = message_id[:32]
        return [Send(peer, PUBLISH, body) for peer in self._mesh if peer not in (but, author)]

    def _is_backing_off(self, peer: NodeID, now: float) -> bool:
        return self._backoff.get(peer, now) > now


def _ids(body: bytes, most: int) -> Iterable[bytes]:
    """The whole message ids in a body, at most so many."""
    count = min(len(body) // MESSAGE_ID_SIZE_BYTES, most)
    return (
        body[at : at + MESSAGE_ID_SIZE_BYTES] for at in range(0, count * MESSAGE_ID_SIZE_BYTES, MESSAGE_ID_SIZE_BYTES)
    )

"""The gossip cache that the index is compared with: its cache by a plain model, its mesh without a network."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.discovery_designs.gossip import (
    GRAFT,
    IHAVE,
    IWANT,
    MESSAGE_ID_SIZE_BYTES,
    PRUNE,
    PUBLISH,
    GossipCache,
    GossipConfig,
    GossipRouter,
    Send,
)

LIFE_S = 10.0
OWNERS = [bytes([number]) * 32 for number in range(8)]


class Mesh:
    """Routers, every one of which knows every other; messages arrive at once, in order."""

    def __init__(self, count: int, *, deaf: tuple[int, ...] = ()) -> None:
        rng = random.Random(7)
        self.ids = [rng.randbytes(32) for _ in range(count)]
        self.routers = {each: GossipRouter(each, random.Random(each)) for each in self.ids}
        self.deaf = {self.ids[number] for number in deaf}  # eager messages to these get lost
        self.heard: dict[bytes, list[bytes]] = {each: [] for each in self.ids}
        self.sent: list[tuple[bytes, Send]] = []
        self.now = 0.0
        self._rng = rng

    def beat(self) -> None:
        self.now += 1.0
        for each in self.ids:
            known = self._rng.sample(self.ids, len(self.ids))
            self.deliver(each, self.routers[each].heartbeat(self.now, known))
            self.routers[each].check_invariants()

    def publish(self, author: bytes, number: int) -> bytes:
        message_id = author + number.to_bytes(8, "big")
        self.deliver(author, self.routers[author].publish(message_id, b"payload", self.now))
        return message_id

    def deliver(self, source: bytes, sends: list[Send]) -> None:
        queue = deque((source, send) for send in sends)
        while queue:
            sender, send = queue.popleft()
            self.sent.append((sender, send))
            answers = self._receive(self.routers[send.target], sender, send)
            queue += [(send.target, answer) for answer in answers]

    def _receive(self, router: GossipRouter, sender: bytes, send: Send) -> list[Send]:
        match send.kind:
            case "gossip.publish":
                if send.target in self.deaf and not self._was_asked_for(sender, send):
                    return []
                news = router.on_publish(sender, send.body, self.now)
                if news is None:
                    return []
                self.heard[send.target].append(news[0])
                return news[2]
            case "gossip.ihave":
                return router.on_ihave(sender, send.body)
            case "gossip.iwant":
                return router.on_iwant(sender, send.body)
            case "gossip.graft":
                return router.on_graft(sender, self.now)
            case _:
                router.on_prune(sender, self.now)
                return []

    def _was_asked_for(self, sender: bytes, send: Send) -> bool:
        return any(each.kind == IWANT and asker == send.target and each.target == sender for asker, each in self.sent)


@given(
    st.lists(
        st.tuples(st.sampled_from(OWNERS), st.integers(1, 5), st.floats(0, 4)),
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_the_cache_holds_the_newest_of_the_latest_heard_and_nobody_for_longer_than_their_life(
    heard: list[tuple[bytes, int, float]], max_entries: int
):
    cache = GossipCache(LIFE_S, max_entries=max_entries)
    model: dict[bytes, tuple[int, float]] = {}
    now = 0.0
    for owner, seq, pause_s in heard:
        now += pause_s
        model = {each: entry for each, entry in model.items() if entry[1] > now}
        assert cache.live(now) == list(model)
        is_news = owner not in model or model[owner][0] < seq

        assert cache.hear(owner, seq, 1, now) == is_news

        if is_news:
            model.pop(owner, None)
            model[owner] = (seq, now + LIFE_S)
            if len(model) > max_entries:
                del model[next(iter(model))]
        cache.check_invariants()
        assert cache.live(now) == list(model)
    assert cache.held(now + LIFE_S).records == 0


def test_a_mesh_has_as_many_peers_as_it_should_and_both_ends_know():
    mesh = Mesh(40)

    for _ in range(5):
        mesh.beat()

    config = GossipConfig()
    assert all(config.d_low <= len(router.mesh) <= config.d_high for router in mesh.routers.values())
    assert all(each in mesh.routers[peer].mesh for each in mesh.ids for peer in mesh.routers[each].mesh)


def test_everybody_hears_a_message_once_and_each_sends_it_to_its_mesh_at_most():
    mesh = Mesh(60)
    for _ in range(3):
        mesh.beat()

    message_id = mesh.publish(mesh.ids[0], 1)

    assert all(mesh.heard[each] == [message_id] for each in mesh.ids[1:])
    assert mesh.heard[mesh.ids[0]] == []
    sent = sum(send.kind == PUBLISH for _, send in mesh.sent)
    assert sent <= sum(len(router.mesh) for router in mesh.routers.values())


def test_who_missed_a_message_asks_for_it_once_told_and_nobody_can_after_its_windows_are_over():
    mesh = Mesh(30, deaf=(3,))
    for _ in range(3):
        mesh.beat()
    message_id = mesh.publish(mesh.ids[0], 1)
    assert mesh.heard[mesh.ids[3]] == []

    for _ in range(GossipConfig().history_length):
        mesh.beat()

    assert mesh.heard[mesh.ids[3]] == [message_id]
    assert all(router.is_idle for router in mesh.routers.values())
    asked = mesh.routers[mesh.ids[1]].on_iwant(mesh.ids[2], message_id)
    assert asked == []


def test_a_full_mesh_refuses_and_who_was_refused_leaves_it_alone_for_a_while():
    config = GossipConfig()
    others = [bytes([number]) * 32 for number in range(1, config.d_high + 2)]
    router = GossipRouter(bytes(32), random.Random(1))
    for peer in others[:-1]:
        assert router.on_graft(peer, 0.0) == []

    assert router.on_graft(others[-1], 0.0) == [Send(others[-1], PRUNE)]

    refused = GossipRouter(others[-1], random.Random(2))
    refused.on_prune(bytes(32), 0.0)
    assert refused.heartbeat(1.0, [bytes(32)]) == []
    assert refused.on_graft(bytes(32), 1.0) == [Send(bytes(32), PRUNE)]
    assert refused.heartbeat(config.prune_backoff_s + 1, [bytes(32)]) == [Send(bytes(32), GRAFT)]


@pytest.mark.parametrize("body", [b"", b"x", bytes(MESSAGE_ID_SIZE_BYTES - 1)])
def test_what_is_too_short_to_be_a_message_is_nothing(body: bytes):
    router = GossipRouter(bytes(32), random.Random(1))

    assert router.on_publish(OWNERS[1], body, 0.0) is None
    assert router.on_ihave(OWNERS[1], body) == []
    assert router.on_iwant(OWNERS[1], body) == []
    router.check_invariants()


def test_no_more_ids_are_told_and_asked_for_than_fit_a_message():
    router = GossipRouter(bytes(32), random.Random(1), GossipConfig(max_ids=3))
    ids = [bytes([number]) * MESSAGE_ID_SIZE_BYTES for number in range(5)]
    for each in ids:
        router.publish(each, b"", 0.0)

    sends = router.heartbeat(1.0, OWNERS[1:2] + OWNERS[2:8])

    assert {len(send.body) for send in sends if send.kind == IHAVE} <= {3 * MESSAGE_ID_SIZE_BYTES}
    other = GossipRouter(OWNERS[1], random.Random(1), GossipConfig(max_ids=3))
    (wanted,) = other.on_ihave(bytes(32), b"".join(ids))
    assert wanted == Send(bytes(32), IWANT, b"".join(ids[:3]))

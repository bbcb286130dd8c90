"""A swarm of several releases: members of today, members from the future, and callers that speak the plain wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import pytest

from dht.contact import Contact
from dht.lookup import LookupMode
from dht.node import DHTNode
from synapse_p2p import Client, Server
from synapse_p2p.context import CallContext
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.peers import KnownPeer
from synapse_p2p.serializers import MessagePackRPCSerializer

COUNT = 9
CALLS_OF_EACH = 20
LATER = {"later": {"what": [1, b"\x00", None, "new"]}, "zz": 2.5}
"""Fields that a later release adds to every request and every answer."""

Handler = Callable[[Mapping[str, Any], CallContext], Any]


class Plain(MessagePackRPCSerializer):
    """A serializer of a caller's own: its client speaks the plain wire alone, as releases 1 and 2 do."""


class FutureHost:
    """A server whose node says more than today's know: in requests, in answers, and of each contact."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.peers = FuturePeers(server)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def mount(self, prefix: str, endpoints: Mapping[str, Handler]) -> None:
        self._server.mount(prefix, {name: says_more(handler) for name, handler in endpoints.items()})


class FuturePeers:
    def __init__(self, server: Server) -> None:
        self._peers = server.peers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peers, name)

    async def call(self, peer: KnownPeer, endpoint: str, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        return await self._peers.call(peer, endpoint, {**request, **LATER}, timeout_s=timeout_s)


def says_more(handler: Handler) -> Handler:
    def handle(request: Mapping[str, Any], context: CallContext) -> Any:
        answer = {**handler(request, context), **LATER}
        if "contacts" in answer:
            answer["contacts"] = [[*contact, ["quic"], 7] for contact in answer["contacts"]]
        return answer

    return handle


async def echo(word: str) -> str:
    return word


@pytest.fixture
async def members():
    servers = [Server("127.0.0.1", 0) for _ in range(COUNT)]
    nodes: list[DHTNode] = []
    try:
        for number, server in enumerate(servers):
            server.endpoint("echo")(echo)
            await server.start()
            node = DHTNode(FutureHost(server) if number % 3 == 0 else server)
            await node.start()
            nodes.append(node)
            if number:
                report = await node.join([servers[number // 2].listening_addresses[0]])
                assert report.joined, str(report)
        yield list(zip(servers, nodes, strict=True))
    finally:
        for node in nodes:
            await node.stop()
        for server in servers:
            await server.stop(grace=0)


async def test_members_of_all_releases_find_each_other_keep_each_others_values_and_serve_plain_callers(members):
    async def call_plainly(server: Server) -> None:
        client = Client("127.0.0.1", server.port, serializer_class=Plain)
        for number in range(CALLS_OF_EACH):
            assert await client.call("echo", f"word {number}") == f"word {number}"

    async def live(node: DHTNode, number: int) -> None:
        for _, other in members:
            if other is not node:
                outcome = await node.lookup(other.id, LookupMode.STRICT)
                assert outcome.closest[0].id == other.id
                assert outcome.failed == 0
        report = await node.put(b"value of %d" % number)
        mutable = await node.put_mutable(b"version of %d" % number, salt=b"name")
        assert (report.stored, report.refused) == (COUNT, ())
        assert (mutable.stored, mutable.refused) == (COUNT, ())
        keys.append((report.key, b"value of %d" % number))
        keys.append((mutable.key, b"version of %d" % number))

    keys: list[tuple[bytes, bytes]] = []
    await asyncio.gather(
        *(call_plainly(server) for server, _ in members),
        *(live(node, number) for number, (_, node) in enumerate(members)),
    )

    for key, value in keys:
        for _, node in members:
            assert await node.get(key) == value
    assert all(node.status().suspects == 0 for _, node in members)


async def test_what_a_later_release_asks_for_is_refused_by_name_and_the_session_lives(members):
    (server, _), (other, asked) = members[0], members[1]
    contact = Contact(asked.id, (other.listening_addresses[0],))
    peers = server.peers

    with pytest.raises(RemoteError) as unknown:
        await peers.call(contact, "_dht.later", {"what": 1}, timeout_s=5.0)
    kept = await peers.call(contact, "_dht.store", {"record": _of_unknown_kind(), "offers": []}, timeout_s=5.0)
    pong = await peers.call(contact, "_dht.ping", {}, timeout_s=5.0)

    assert unknown.value.code == "not_found"
    assert (kept["stored"], kept["refusal"]) == (False, "unknown_kind")
    assert "unix_ms" in pong


def _of_unknown_kind() -> bytes:
    return msgpack.packb([99, b"whatever", bytes(64)])

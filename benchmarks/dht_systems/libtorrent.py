"""`libtorrent`: C++ with threads for each session, plaintext UDP; immutable items, 8 replicas. Through its Python
bindings.

Requests are those that each session counts itself as sent (`dht.dht_*_out`). Its limits for each address and of bytes a
second are lifted: here all nodes share one address. A node of it does not take a caller into its table at once, so each
newcomer and those before it are told of each other: its join is not comparable.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import libtorrent  # pyrefly: ignore[missing-import]

from benchmarks.dht_worker import until

HOST = "127.0.0.1"
SENT = tuple(f"dht.dht_{kind}_out" for kind in ("ping", "find_node", "get_peers", "announce_peer", "get", "put"))
SETTINGS = {
    "listen_interfaces": f"{HOST}:0",
    "enable_dht": True,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "dht_bootstrap_nodes": "",
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_ignore_dark_internet": False,
    "dht_prefer_verified_node_ids": False,
    "dht_enforce_node_id": False,
    "dht_upload_rate_limit": 100_000_000,
    "dht_block_ratelimit": 1_000_000,
    "alert_mask": libtorrent.alert.category_t.dht_notification | libtorrent.alert.category_t.stats_notification,
}


class Node:
    """One session."""

    def __init__(self) -> None:
        self.session: Any = libtorrent.session(SETTINGS)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Any, list[asyncio.Future[Any]]] = defaultdict(list)  # by kind of alert, and by target
        self.session.set_alert_notify(self._on_alerts)  # from a thread of its own

    @property
    def port(self) -> int:
        return self.session.listen_port()

    async def put(self, value: bytes) -> str | None:
        key = str(self.session.dht_put_immutable_item(value))
        stored = await self._alert("put", key)
        return key if stored.num_success > 0 else None

    async def get(self, key: str) -> bytes | None:
        self.session.dht_get_immutable_item(libtorrent.sha1_hash(bytes.fromhex(key)))
        return (await self._alert("get", key)).item or None

    def holds(self, key: str) -> bool:
        return False  # it asks the network for what it holds, too

    async def requests_sent(self) -> int:
        stats = await self.stats()
        return sum(stats[name] for name in SENT)

    async def stats(self) -> dict[str, int]:
        self.session.post_session_stats()
        return (await self._alert("stats", "")).values

    async def kill(self) -> None:
        self.session.apply_settings({"enable_dht": False, "listen_interfaces": ""})  # the sockets close
        await until(lambda: not self.session.is_dht_running() and self.port == 0, what="an end")

    async def _alert(self, kind: str, target: str) -> Any:
        future = self._loop.create_future()
        self._waiting[kind, target].append(future)
        return await future

    def _on_alerts(self) -> None:
        self._loop.call_soon_threadsafe(self._take_alerts)

    def _take_alerts(self) -> None:
        for alert in self.session.pop_alerts():
            for future in self._waiting.pop(_what(alert), ()):
                if not future.done():
                    future.set_result(alert)


def _what(alert: Any) -> tuple[str, str]:
    match alert:
        case libtorrent.dht_put_alert():
            return "put", str(alert.target)
        case libtorrent.dht_immutable_item_alert():
            return "get", str(alert.target)
        case libtorrent.session_stats_alert():
            return "stats", ""
    return "", ""


class System:
    """A swarm of them."""

    async def start(self, others: Sequence[Node]) -> Node:
        node = Node()
        await until(lambda: node.port > 0, what="listening")
        for other in others:
            node.session.add_dht_node((HOST, other.port))
            other.session.add_dht_node((HOST, node.port))
        for _ in range(1000):
            if (await node.stats())["dht.dht_nodes"] >= min(8, len(others)):
                return node
            await asyncio.sleep(0.002)
        raise RuntimeError("a join took more than 1000 looks")

    def missing_key(self, rng: random.Random) -> str:
        return rng.randbytes(20).hex()

"""Our client calls servers of earlier releases."""

from __future__ import annotations

from typing import Any

import pytest

from synapse_p2p import Client, ConfigError, RemoteError, Timeout
from synapse_p2p.exceptions import FrameTooLarge, PeerUnavailable
from tests.cli.typing_commands import typed
from tests.compat.conftest import Release

VALUES = [None, True, 0, -1, 2**63, -(2**63), 0.5, "", "grüße, 世界", b"", b"\x00\xff", [], {}, [[1], {"a": {"b": 2}}]]


def client_of(old_port: int, **options: Any) -> Client:
    return Client(port=old_port, **({"timeout": 20} | options))


async def test_a_call_returns_what_their_handler_returns(old_port: int):
    client = client_of(old_port)

    assert await client.call("sum", 2, 3) == 5
    assert await client.call("sum", 2, b=3, scale=2) == 10
    assert await client.call("_synapse.ping") == "pong"


async def test_every_kind_of_value_comes_back_as_it_went(old_port: int):
    assert await client_of(old_port).call("echo", *VALUES, key=VALUES) == [VALUES, {"key": VALUES}]


async def test_their_methods_are_listed(old_port: int):
    methods = await client_of(old_port).call("_synapse.methods")

    assert {"name": "sum", "publish": True, "description": "Adds."} in methods
    assert "zeros" not in [method["name"] for method in methods]


async def test_their_agent_is_described_and_takes_tasks(old_port: int, release: Release):
    client, prefix = client_of(old_port), agent_prefix(release)

    info = await client.call(prefix + "info")
    capabilities = await client.call(prefix + "capabilities")
    answer = await client.call(prefix + "ask", "Review this", context={"diff": "+1"})

    described = {"name": "Reviewer", "role": "reviewer", "description": "Reviews code.", "capabilities": ["python"]}
    assert info == described
    assert capabilities == [{"name": "python", "description": "", "input_schema": {}, "output_schema": {}}]
    assert answer == {"task": "Review this", "context": {"diff": "+1"}}


def agent_prefix(release: Release) -> str:
    return "_agent." if release.name.startswith("1.") else "_node."


async def test_an_unknown_endpoint_is_a_bad_request(old_port: int):
    with pytest.raises(RemoteError, match=r"^Unregistered endpoint called: missing$") as caught:
        await client_of(old_port).call("missing")

    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(("endpoint", "args", "text"), [("boom", [], "the reason"), ("sum", [1], "missing 1 required")])
async def test_what_their_handler_raises_is_an_internal_error(old_port: int, endpoint: str, args: list[Any], text: str):
    with pytest.raises(RemoteError, match=text) as caught:
        await client_of(old_port).call(endpoint, *args)

    assert caught.value.code == "internal_error"


async def test_a_handler_that_hangs_is_a_timeout(old_port: int):
    with pytest.raises(Timeout):
        await client_of(old_port, timeout=0.5).call("hang")


async def test_an_answer_over_our_limit_is_refused_here(old_port: int):
    with pytest.raises(FrameTooLarge):
        await client_of(old_port, max_download_size=1000).call("zeros", 2000)


async def test_large_messages_go_both_ways_within_their_limit(old_port: int, release: Release):
    size_bytes = 4000 if release.name.startswith("1.") else 1_000_000
    client = client_of(old_port)

    assert await client.call("zeros", size_bytes) == bytes(size_bytes)
    assert await client.call("echo", bytes(size_bytes - 200)) == [[bytes(size_bytes - 200)], {}]


async def test_a_request_over_our_limit_is_not_sent(old_port: int):
    with pytest.raises(ConfigError, match="max_upload_size"):
        await client_of(old_port).call("echo", bytes(2**20))


async def test_a_request_over_their_limit_is_refused_there(old_port: int, release: Release):
    limit_bytes = 4096 if release.name.startswith("1.") else 4 * 2**20
    client = client_of(old_port, max_upload_size=8 * 2**20)

    # Their servers close with our bytes unread, which resets the connection: where those are many, the answer is lost.
    with pytest.raises((RemoteError, PeerUnavailable)) as caught:
        await client.call("echo", bytes(limit_bytes))

    if isinstance(caught.value, RemoteError):
        assert caught.value.code == "bad_request"
        assert f"> {limit_bytes}" in caught.value.message
    assert await client.call("_synapse.ping") == "pong"


def test_the_command_call_reaches_them(old_port: int, release: Release):
    place = f"legacy://127.0.0.1:{old_port}"
    prefix = agent_prefix(release)

    answer = typed("call", place, f"{prefix}ask", "Review this", 'context={"diff": "+1"}', "--json")
    assert answer.found == {"result": {"task": "Review this", "context": {"diff": "+1"}}}
    assert typed("call", place, "sum", "2", "b=3").out == "5\n"
    assert typed("call", f"127.0.0.1:{old_port}", "sum", "2", "3", "--json").found == {"result": 5}
    assert typed("call", place, "missing").code == 1

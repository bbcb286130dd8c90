"""What users of streams meet: values, checks, and the sentences of what cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from synapse_p2p import Client, ConfigError, RemoteError, Server, blocking
from synapse_p2p.config import MIB
from synapse_p2p.exceptions import HandshakeFailed, InvalidMessageError, PeerUnavailable, Timeout
from synapse_p2p.protocol.wire import MAX_UPLOADS
from synapse_p2p.serializers import MessagePackRPCSerializer
from synapse_p2p.transport.asked_stream import AskedStream
from tests.test_client import old_server


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Row:
    name: str
    age: int = 0


def app() -> Server:
    server = Server(port=0)

    @server.endpoint()
    async def count(length: int) -> AsyncIterator[int]:
        for number in range(length):
            yield number

    @server.endpoint()
    async def give(values: list[Any]) -> AsyncIterator[Any]:
        for value in values:
            yield value

    @server.endpoint()
    async def rows() -> AsyncIterator[Row]:
        yield Row("Ada", 36)

    @server.endpoint()
    async def colours() -> AsyncIterator[Any]:
        yield [Colour.RED, {"inside": Colour.RED}]

    @server.endpoint()
    async def unsendable(value: str) -> AsyncIterator[Any]:
        yield "good"
        yield {"long": bytes(2 * MIB), "odd": {3: "a number is no key"}, "object": object()}[value]

    @server.endpoint()
    async def ages(people: AsyncIterator[Row]) -> list[int]:
        return [row.age async for row in people]

    @server.endpoint(validate=True)
    async def total(numbers: AsyncIterable[int], scale: int = 1) -> int:
        return scale * sum([number async for number in numbers])

    @server.endpoint(validate=True)
    async def odd() -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    @server.endpoint()
    async def either(one: Any, other: Any) -> list[Any]:
        return [[item async for item in one], [item async for item in other]]

    @server.endpoint()
    async def one(value: Any) -> Any:
        return value

    @server.endpoint()
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    @server.endpoint()
    async def keeps(rows: AsyncIterator[int]) -> str:
        async def read_on() -> None:
            kept.append([row async for row in rows])

        reading = asyncio.create_task(read_on())
        await asyncio.sleep(0)
        failures.append(reading)
        return "before its end"

    server.mount("_agent.", {"_agent.mounted": lambda kwargs, context: True})
    kept: list[Any] = []
    failures: list[Any] = []
    server.failures = failures  # type: ignore[attr-defined]
    return server


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Client]:
    server = app()
    await server.start()
    try:
        async with Client(port=server.port, **({"timeout": 10} | options)) as client:
            yield client
    finally:
        await server.stop(grace=0)


async def all_of(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def given(*values: Any) -> AsyncIterator[Any]:
    for value in values:
        yield value


class Given:
    """An asynchronous iterable that is no generator."""

    def __init__(self, *values: Any) -> None:
        self._values = list(values)

    def __aiter__(self) -> Given:
        return self

    async def __anext__(self) -> Any:
        if not self._values:
            raise StopAsyncIteration
        return self._values.pop(0)


async def test_values_of_every_kind_arrive_as_they_are_in_order():
    values = [None, False, "text", b"bytes", 2**63, {"map": [1, {"deep": []}]}, b"x" * 100_000, []]
    async with serving() as client:
        assert await all_of(client.stream("give", values)) == values
        assert await all_of(client.stream("count", 0)) == []


async def test_instances_are_dumped_item_by_item():
    async with serving() as client:
        assert await all_of(client.stream("rows")) == [{"name": "Ada", "age": 36}]
        assert await all_of(client.stream("colours")) == [["red", {"inside": "red"}]]


async def test_items_of_an_upload_are_built_and_checked_like_any_other_argument():
    async with serving() as client:
        assert await client.call("ages", given(Row("Ada", 36), {"name": "Bob"})) == [36, 0]
        assert await client.call("total", numbers=Given(1, 2, 3), scale=2) == 12
        for call, path in (
            (client.call("ages", given({"name": "Ada"}, {"name": "Bob", "age": "old"})), r"'people\[1\]\.age'"),
            (client.call("total", given(1, 2, "three")), r"'numbers\[2\]'"),
        ):
            with pytest.raises(RemoteError, match=path) as failure:
                await call
            assert failure.value.code == "bad_request"


async def test_an_item_that_is_not_what_the_hint_says_is_the_servers_own_failure():
    async with serving() as client:
        got: list[int] = []

        async def read() -> None:
            async for item in client.stream("odd"):
                got.append(item)

        with pytest.raises(RemoteError) as failure:
            await read()
    assert (got, failure.value.code) == ([1], "internal_error")


async def test_two_uploads_keep_apart_and_their_places():
    async with serving() as client:
        assert await client.call("either", given(1, 2, 3), other=given("a")) == [[1, 2, 3], ["a"]]


async def test_a_call_has_so_many_uploads_and_no_more():
    async with serving() as client:
        with pytest.raises(ConfigError, match="9 arguments are streams; one call carries 8"):
            await client.call("one", *(Given() for _ in range(MAX_UPLOADS + 1)))


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda client: client.call("count", 3), "count is a stream: write `async for item in client.stream\\('count'"),
        (lambda client: anext(client.stream("one", 3)), "one returns one value.*`await client.call\\('one'"),
        (lambda client: client.call("total", [1, 2]), "'numbers' takes a stream: give it an asynchronous iterator"),
        (lambda client: anext(client.stream("count", given(1))), "'length' takes one value, and no stream"),
        (lambda client: anext(client.stream("nowhere")), "nowhere"),
        (lambda client: anext(client.stream("_synapse.ping")), "_synapse.ping returns one value"),
        (lambda client: anext(client.stream("_agent.mounted")), "_agent.mounted returns one value"),
    ],
)
async def test_a_wrong_use_is_told_what_to_write(use: Any, sentence: str):
    async with serving() as client:
        with pytest.raises(RemoteError, match=sentence):
            await use(client)
        assert await client.call("one", 7) == 7


@pytest.mark.parametrize(
    ("value", "code", "text"),
    [
        ("long", "too_large", "its stream has to be of smaller ones"),
        ("odd", "internal_error", "reference"),
        ("object", "internal_error", "reference"),
    ],
)
async def test_an_item_that_cannot_travel_ends_the_stream_after_those_before_it(value: str, code: str, text: str):
    async with serving() as client:
        items = client.stream("unsendable", value)
        assert await anext(items) == "good"
        with pytest.raises(RemoteError, match=text) as failure:
            await anext(items)
    assert failure.value.code == code


async def test_a_forgotten_await_in_a_handler_is_named_in_the_log_and_the_caller_is_told_nothing(
    caplog: pytest.LogCaptureFixture,
):
    made: list[Any] = []
    server = Server(port=0)

    async def work() -> None:
        """Never run."""

    @server.endpoint()
    async def forgetful() -> Any:
        made.append(work())
        return {"done": made[-1]}

    @server.endpoint()
    async def forgetful_stream() -> AsyncIterator[Any]:
        made.append(work())
        yield made[-1]

    await server.start()
    async with Client(port=server.port) as client:
        with pytest.raises(RemoteError, match=r"^internal error \(reference \w+\)$"):
            await client.call("forgetful")
        with pytest.raises(RemoteError, match=r"^internal error \(reference \w+\)$"):
            await anext(client.stream("forgetful_stream"))
    await server.stop()

    for each in made:
        each.close()
    assert "ConfigError: the result['done'] is a coroutine, so an `await` is missing" in caplog.text
    assert "ConfigError: the result is a coroutine, so an `await` is missing" in caplog.text


@pytest.mark.parametrize("item", [bytes(2 * MIB), object(), 2**70, {3: "key"}])
async def test_an_item_of_an_upload_that_cannot_travel_is_named_here(item: Any):
    async with serving() as client:
        with pytest.raises(ConfigError, match="item 1 of argument 'numbers' of total"):
            await client.call("total", numbers=given(1, item))
        with pytest.raises(ConfigError, match="item 1 of argument 0 of total"):
            await client.call("total", given(1, item))


@pytest.mark.parametrize("endpoint", ["", "x" * 300, 7, "_dht.ping"])
async def test_a_name_that_cannot_be_streamed_is_refused_here(endpoint: Any):
    async with serving() as client:
        with pytest.raises(ConfigError):
            await anext(client.stream(endpoint))


async def test_a_stream_without_an_item_for_too_long_says_what_to_do():
    async with serving(timeout=0.2) as client:
        items = client.stream("silent")
        assert await anext(items) == 1
        with pytest.raises(Timeout, match=r"no item of silent for 0.2 s.*with_options\(timeout_s=None\)"):
            await anext(items)


async def test_a_timeout_is_of_one_item_and_not_of_the_stream():
    async with serving(timeout=0.3) as client:
        got = 0
        async for _ in client.stream("count", 8):
            await asyncio.sleep(0.05)
            got += 1
    assert got == 8


async def test_a_client_that_is_closed_ends_its_streams():
    async with serving() as client:
        items = client.stream("silent")
        await anext(items)
        await client.close()
        with pytest.raises(PeerUnavailable):
            await anext(items)


async def test_a_task_that_reads_an_upload_after_its_call_is_told_so():
    server = app()
    await server.start()
    async with Client(port=server.port, timeout=10) as client:

        async def slow() -> AsyncIterator[int]:
            await asyncio.Event().wait()
            yield 1

        assert await client.call("keeps", slow()) == "before its end"
    [reading] = server.failures  # type: ignore[attr-defined]
    with pytest.raises(PeerUnavailable, match="the call is over"):
        await reading
    await server.stop(grace=0)


# Servers and wires without streams


async def test_a_server_of_release_1_is_told_apart_and_named():
    async with old_server() as (_, port):
        client = Client(port=port, timeout=5)
        for use in (lambda: anext(client.stream("tail")), lambda: client.call("total", given(1))):
            with pytest.raises(HandshakeFailed, match="carries no streams: upgrade it to release 3") as failure:
                await use()
            assert failure.value.reason == "plain"


async def test_a_serializer_of_the_users_own_has_no_streams():
    class Own(MessagePackRPCSerializer):
        pass

    client = Client(port=1, serializer_class=Own)
    with pytest.raises(ConfigError, match="carries no streams: leave it out"):
        await anext(client.stream("tail"))


async def test_a_plain_caller_of_a_stream_is_told_what_it_needs():
    class Own(MessagePackRPCSerializer):
        pass

    server = app()
    await server.start()
    plain = Client(port=server.port, serializer_class=Own, timeout=5)
    with pytest.raises(RemoteError, match=r"count is a stream.*it needs a client of release 3") as failure:
        await plain.call("count", 3)
    with pytest.raises(RemoteError, match=r"'people' takes a stream.*release 3"):
        await plain.call("ages", [1])
    await server.stop(grace=0)
    assert failure.value.code == "bad_request"


async def test_a_peer_that_answers_a_stream_with_one_value_is_named(monkeypatch: pytest.MonkeyPatch):
    """As one does whose release ignores the option."""
    async with serving() as client:
        await client.call("one", 0)
        connection = client._session._here().connection
        assert connection is not None
        stream = await connection.open_stream("count", [10**9], {}, uploads={}, timeout_s=5)
        assert isinstance(stream, AskedStream)
        stream.set_result("one value")
        while stream.has_item():
            stream.take()
        with pytest.raises(RemoteError, match=r"count returns one value: await client.call"):
            await stream.wait(5)
        stream.close()


async def test_a_stream_describes_itself():
    async with serving() as client:
        rows = await client.call("_synapse.describe", "rows")
        ages = await client.call("_synapse.describe", "ages")
    assert (rows["streams"], ages["streams"]) == (True, False)
    assert rows["returns"]["$ref"] == "#/$defs/Row"
    assert ages["parameters"]["properties"]["people"]["x-stream"] is True


# Without async


@pytest.fixture
def port() -> Iterator[int]:
    server = app()
    with blocking.LoopThread() as host:
        host.run(server.start, instead="")
        yield server.port
        host.run(lambda: server.stop(grace=0), instead="")


def test_a_blocking_client_iterates_and_uploads(port: int):
    with blocking.Client(port=port, timeout=10) as client:
        assert list(client.stream("count", 100)) == list(range(100))
        assert client.call("total", iter([1, 2, 3])) == 6
        assert client.call("ages", people=(Row("x", age) for age in range(3))) == [0, 1, 2]
        for number in client.stream("count", 10**9):
            if number == 5:
                break
        with pytest.raises(RemoteError, match="returns one value"):
            next(client.stream("one", 1))
        assert client.call("one", [1, 2]) == [1, 2]  # a list is a value


async def test_a_blocking_stream_in_a_running_loop_names_its_twin():
    client = blocking.Client(port=1)
    with pytest.raises(ConfigError, match="async for item in"):
        next(client.stream("count", 1))


def test_an_upload_does_not_fit_into_another_value():
    from synapse_p2p.hints import HintReader
    from synapse_p2p.schema import build
    from synapse_p2p.shapes import Misfit

    shape = HintReader({}).read(list[AsyncIterator[int]])
    with pytest.raises(Misfit, match="is a stream"):
        build(shape, [1])
    assert issubclass(InvalidMessageError, Exception)

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from synapse_p2p.access import PACKAGE_PREFIXES, Audience
from synapse_p2p.context import CallContext
from synapse_p2p.endpoints import Endpoint, EndpointDirectory, EndpointMetadata
from synapse_p2p.exceptions import CallError, ConfigError, InvalidAnswerError, InvalidMessageError, RemoteError
from synapse_p2p.messages import Answer, Code, Outcome, Refusal, RPCRequest

CONTEXT = CallContext(peer=None, address="127.0.0.1:80")


@dataclass
class User:
    name: str
    age: int = 3


def directory(**options: Any) -> EndpointDirectory:
    return EndpointDirectory(token_bytes=lambda count: b"\xab" * count, **options)


async def serve(endpoints: EndpointDirectory, name: str, *args: Any, **kwargs: Any) -> Outcome:
    return await endpoints.serve(RPCRequest(endpoint=name, id="7", args=list(args), kwargs=kwargs), CONTEXT)


# Registration


def test_it_reads_as_a_mapping_from_names_to_functions():
    endpoints = directory()

    def add(a, b):
        """Add two numbers."""
        return a + b

    endpoints.register("sum", add)

    assert "sum" in endpoints
    assert list(endpoints) == ["sum"]
    assert endpoints["sum"] is add
    assert endpoints.metadata() == {"sum": EndpointMetadata("sum", publish=True, description="Add two numbers.")}


def test_only_public_endpoints_are_published():
    endpoints = directory()
    endpoints.register("shown", print, description="words")
    endpoints.register("hidden", print, publish=False)

    assert endpoints.published() == [{"name": "shown", "publish": True, "description": "words"}]


@pytest.mark.parametrize("prefix", PACKAGE_PREFIXES)
def test_a_users_name_may_not_begin_like_the_packages_own(prefix: str):
    with pytest.raises(ConfigError, match="names of the package"):
        directory().register(prefix + "mine", print)


@pytest.mark.parametrize("name", ["", "x" * 257, None])
def test_a_name_that_could_not_be_called_is_refused(name: Any):
    with pytest.raises(ConfigError, match="1 to 256 characters"):
        directory().register(name, print)


async def test_a_name_that_is_taken_goes_to_the_newcomer_with_a_warning(caplog: pytest.LogCaptureFixture):
    endpoints = directory()

    async def older():
        return "older"

    async def newer():
        return "newer"

    endpoints.register("same", older)
    endpoints.register("same", newer)

    assert await serve(endpoints, "same") == Answer("newer")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_plain_generator_is_refused_when_it_is_registered():
    def count():
        yield 1

    with pytest.raises(ConfigError, match="'count' is a plain generator; one that is `async def` is a stream"):
        directory().register("count", count)


def test_what_is_no_function_is_refused():
    with pytest.raises(ConfigError, match="not a function but of type int"):
        directory().register("seven", 7)


# Running


async def test_an_async_function_is_awaited():
    endpoints = directory()

    async def add(a, b, scale=1):
        return (a + b) * scale

    endpoints.register("sum", add)

    assert await serve(endpoints, "sum", 2, 3, scale=2) == Answer(10)


async def test_a_plain_function_runs_in_a_thread_with_the_callers_context():
    endpoints = directory(handler_threads=1)
    variable = contextvars.ContextVar("variable", default="unset")

    def where():
        return threading.current_thread() is threading.main_thread(), variable.get()

    endpoints.register("where", where)
    variable.set("set")

    assert await serve(endpoints, "where") == Answer((False, "set"))
    endpoints.close()


async def test_a_plain_function_that_blocks_does_not_hold_up_the_loop():
    endpoints = directory(handler_threads=1)
    release = threading.Event()
    endpoints.register("block", lambda: release.wait(10))
    endpoints.register("free", functools.partial(asyncio.sleep, 0, "free"))

    blocked = asyncio.create_task(serve(endpoints, "block"))
    free = await serve(endpoints, "free")
    release.set()

    assert free == Answer("free")
    assert await blocked == Answer(True)
    endpoints.close()


async def test_at_most_the_given_number_of_threads_run():
    endpoints = directory(handler_threads=2)
    running, peak, lock = 0, 0, threading.Lock()
    both_in = threading.Barrier(2)

    def work():
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        both_in.wait(10)
        with lock:
            running -= 1

    endpoints.register("work", work)
    await asyncio.gather(*(serve(endpoints, "work") for _ in range(6)))

    assert peak == 2
    endpoints.close()


async def test_what_a_plain_function_leaves_to_await_is_awaited():
    endpoints = directory()

    async def inner():
        return "inner"

    endpoints.register("wrapper", lambda: inner())

    assert await serve(endpoints, "wrapper") == Answer("inner")
    endpoints.close()


async def test_a_callable_object_is_an_endpoint():
    class Greeter:
        async def __call__(self, name):
            return f"hello {name}"

    endpoints = directory()
    endpoints.register("greet", Greeter())

    assert await serve(endpoints, "greet", "you") == Answer("hello you")


async def test_nothing_runs_when_the_arguments_do_not_fit():
    endpoints = directory()
    has_run = False

    async def once(a):
        nonlocal has_run
        has_run = True

    endpoints.register("once", once)
    outcome = await serve(endpoints, "once", 1, 2)

    assert isinstance(outcome, Refusal)
    assert outcome.code is Code.BAD_REQUEST
    assert not has_run


# Values


@pytest.mark.parametrize("in_thread", [True, False])
async def test_a_class_is_built_before_the_handler_runs_and_dumped_after_it(in_thread: bool):
    endpoints = directory()

    def plain(user: User) -> list[User]:
        return [user, User(user.name, user.age + 1)]

    async def awaited(user: User) -> list[User]:
        return plain(user)

    endpoints.register("grow", plain if in_thread else awaited)

    assert await serve(endpoints, "grow", {"name": "Ada"}) == Answer(
        [{"name": "Ada", "age": 3}, {"name": "Ada", "age": 4}]
    )
    assert await serve(endpoints, "grow", {"name": "Ada", "age": "x"}) == Refusal(
        Code.BAD_REQUEST, "parameter 'user.age' has to be an integer, not text"
    )
    endpoints.close()


async def test_an_instance_that_no_hint_speaks_of_is_dumped_where_it_is_the_result_itself():
    endpoints = directory()
    users = [User("Ada")]

    async def one():
        return users[0]

    async def several():
        return users

    endpoints.register("one", one)
    endpoints.register("several", several)
    outcome = await serve(endpoints, "several")

    assert await serve(endpoints, "one") == Answer({"name": "Ada", "age": 3})
    assert isinstance(outcome, Answer)
    assert outcome.value is users


async def test_nothing_is_looked_at_where_the_hints_name_no_class():
    async def handler(a: int, b: dict[str, Any]) -> list[Any]:
        return []

    endpoint = Endpoint.of(handler, EndpointMetadata("any"))

    assert endpoint.finish is None
    assert endpoint.parameters.readings == {}


async def test_arguments_and_result_are_checked_where_that_is_wanted(caplog: pytest.LogCaptureFixture):
    endpoints = directory()

    async def half(number: int) -> int:
        return number / 2

    endpoints.register("half", half, validate=True)

    assert await serve(endpoints, "half", 4) == Answer(2)
    assert await serve(endpoints, "half", "4") == Refusal(
        Code.BAD_REQUEST, "parameter 'number' does not fit its schema: type 'integer'"
    )
    assert caplog.records == []
    assert await serve(endpoints, "half", 3) == Refusal(
        Code.INTERNAL_ERROR, "internal error (reference abababab)", {"reference": "abababab"}
    )
    assert "result does not fit its schema: type 'integer'" in caplog.text


async def test_nothing_is_checked_unless_that_is_wanted():
    endpoints = directory()

    async def half(number: int) -> int:
        return number * 2

    endpoints.register("double", half)

    assert await serve(endpoints, "double", "4") == Answer("44")


def test_a_check_that_cannot_be_had_is_an_error_at_registration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    monkeypatch.setitem(sys.modules, "jsonschema.exceptions", None)
    endpoints = directory()

    async def no_arguments() -> int:
        return 1

    with pytest.raises(ConfigError, match=r"pip install 'synapse-p2p\[schema\]'"):
        endpoints.register("one", no_arguments, validate=True)
    assert "one" not in endpoints


# The ends of exceptions


async def test_an_unknown_name_is_answered_with_the_nearest_public_one():
    endpoints = directory()
    endpoints.register("summarize", print)
    endpoints.register("summarise.secret", print, publish=False)

    outcome = await serve(endpoints, "summarise")

    assert outcome == Refusal(Code.NOT_FOUND, "Unregistered endpoint called: summarise", {"nearest": "summarize"})


async def test_an_unpublished_name_is_not_given_away():
    endpoints = directory()
    endpoints.register("secret", print, publish=False)

    assert await serve(endpoints, "secre") == Refusal(Code.NOT_FOUND, "Unregistered endpoint called: secre")


async def test_a_handlers_own_refusal_reaches_the_caller_in_its_words():
    endpoints = directory()

    async def refuse():
        raise CallError("out_of_budget", "come back tomorrow", details={"left": 0, "reason": "overwritten"})

    endpoints.register("refuse", refuse)

    assert await serve(endpoints, "refuse") == Refusal(
        Code.FAILED, "come back tomorrow", {"left": 0, "reason": "out_of_budget"}
    )


async def test_a_handler_may_call_a_request_bad():
    endpoints = directory()

    async def strict(a):
        raise InvalidMessageError("a is a positive number")

    endpoints.register("strict", strict)

    assert await serve(endpoints, "strict", 0) == Refusal(Code.BAD_REQUEST, "a is a positive number")


@pytest.mark.parametrize(
    "error",
    [ValueError("canary"), RemoteError("failed", "canary"), TimeoutError("canary"), StopIteration("canary")],
)
@pytest.mark.parametrize("in_thread", [True, False])
async def test_any_other_exception_stays_in_the_log_under_a_reference(
    error: Exception, in_thread: bool, caplog: pytest.LogCaptureFixture
):
    endpoints = directory()

    def plain():
        raise error

    async def awaited():
        raise error

    endpoints.register("boom", plain if in_thread else awaited)
    outcome = await serve(endpoints, "boom")

    assert outcome == Refusal(Code.INTERNAL_ERROR, "internal error (reference abababab)", {"reference": "abababab"})
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "abababab" in caplog.text
    assert "canary" in caplog.text
    endpoints.close()


async def test_errors_can_be_exposed_while_developing():
    endpoints = directory(expose_errors=True)

    async def boom():
        raise ValueError("canary")

    endpoints.register("boom", boom)
    outcome = await serve(endpoints, "boom")

    assert isinstance(outcome, Refusal)
    assert outcome.message == "ValueError: canary (reference abababab)"


async def test_cancellation_is_no_outcome():
    endpoints = directory(max_handlers=1)
    started = asyncio.Event()

    async def wait_for_ever():
        started.set()
        await asyncio.Event().wait()

    endpoints.register("wait", wait_for_ever)
    call = asyncio.create_task(serve(endpoints, "wait"))
    await started.wait()
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await serve(endpoints, "nobody")).code is Code.NOT_FOUND  # the place is free again


async def test_calls_beyond_the_bound_are_told_that_we_are_busy():
    endpoints = directory(max_handlers=1)
    started, release = asyncio.Event(), asyncio.Event()

    async def wait():
        started.set()
        await release.wait()
        return "done"

    endpoints.register("wait", wait)
    first = asyncio.create_task(serve(endpoints, "wait"))
    await started.wait()

    second = await serve(endpoints, "wait")
    release.set()

    assert isinstance(second, Refusal)
    assert second.code is Code.BUSY
    assert await first == Answer("done")


# Mounted handlers


async def test_a_mounted_handler_gets_the_named_arguments_and_the_context():
    endpoints = directory()
    endpoints.mount("_dht.", {"_dht.ping": lambda request, context: [dict(request), context.address]})

    assert await serve(endpoints, "_dht.ping", nonce=1) == Answer([{"nonce": 1}, "127.0.0.1:80"])
    assert "_dht.ping" not in endpoints


async def test_a_mounted_handler_takes_no_positional_arguments():
    endpoints = directory()
    endpoints.mount("_dht.", {"_dht.ping": lambda request, context: "pong"})

    outcome = await serve(endpoints, "_dht.ping", 1)

    assert isinstance(outcome, Refusal)
    assert outcome.code is Code.BAD_REQUEST


@pytest.mark.parametrize("for_operators", [False, True])
async def test_a_mounted_handler_is_no_stream(for_operators: bool):
    endpoints = directory()
    endpoints.mount("_dht.", {"_dht.ping": lambda request, context: "pong"}, for_operators=for_operators)

    outcome = await endpoints.serve(RPCRequest("_dht.ping", "1", [], {}), CONTEXT, wants_items=True)

    assert isinstance(outcome, Refusal)
    assert (outcome.code, outcome.message[:26]) == (Code.BAD_REQUEST, "_dht.ping returns one valu")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidMessageError("no key"), Code.BAD_REQUEST, "no key"),
        (CallError("wrong_key", "not mine"), Code.FAILED, "not mine"),
        (RemoteError("forbidden", "not for you"), Code.FORBIDDEN, "not for you"),
        (ValueError("canary"), Code.INTERNAL_ERROR, "internal error (reference abababab)"),
    ],
)
async def test_a_mounted_handler_fails_with_a_remote_error_alone(error: Exception, code: Code, message: str):
    def handler(request: Any, context: Any):
        raise error

    endpoints = directory()
    endpoints.mount("_dht.", {"_dht.store": handler})
    mounted = endpoints.mounted("_dht.store")
    assert mounted is not None

    with pytest.raises(RemoteError) as caught:
        mounted({}, CONTEXT)
    outcome = await serve(endpoints, "_dht.store")

    assert (caught.value.code, caught.value.message) == (code, message)
    assert isinstance(outcome, Refusal)
    assert (outcome.code, outcome.message) == (code, message)


def test_what_cannot_be_mounted_is_refused():
    async def awaited(request: Any, context: Any):
        return None

    endpoints = directory()
    endpoints.register("_agent.info", print, reserved=True)

    with pytest.raises(ConfigError, match="not a prefix for packages"):
        endpoints.mount("mine.", {"x": lambda request, context: None})
    with pytest.raises(ConfigError, match="named in full"):
        endpoints.mount("_dht.", {"ping": lambda request, context: None})
    with pytest.raises(ConfigError, match="registered already"):
        endpoints.mount("_agent.", {"_agent.info": lambda request, context: None})
    with pytest.raises(ConfigError, match="plain function"):
        endpoints.mount("_dht.", {"_dht.x": awaited})


def test_mounting_again_takes_the_place_of_what_was_there():
    endpoints = directory()
    endpoints.mount("_dht.", {"_dht.ping": lambda request, context: "old"})
    endpoints.mount("_dht.", {"_dht.ping": lambda request, context: "new"})

    mounted = endpoints.mounted("_dht.ping")

    assert mounted is not None
    assert mounted({}, CONTEXT) == "new"
    assert endpoints.mounted("_dht.pong") is None


async def test_a_handler_that_is_cancelled_from_within_still_ends_its_call(caplog):
    endpoints = directory()

    async def awaits_what_was_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    endpoints.register("broken", awaits_what_was_cancelled)

    outcome = await serve(endpoints, "broken")

    assert isinstance(outcome, Refusal)
    assert outcome.code is Code.INTERNAL_ERROR
    assert "cancelled from within" in caplog.text


async def test_a_call_that_is_cancelled_ends_as_cancelled():
    endpoints = directory()

    async def slow() -> None:
        await asyncio.get_running_loop().create_future()

    endpoints.register("slow", slow)
    task = asyncio.ensure_future(serve(endpoints, "slow"))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_programs_bad_answer_is_no_fault_of_the_caller(caplog: pytest.LogCaptureFixture):
    endpoints = directory()

    async def relay() -> None:
        raise InvalidAnswerError("10.0.0.7:9999 answered another request")

    endpoints.register("relay", relay)

    outcome = await serve(endpoints, "relay")

    assert isinstance(outcome, Refusal)
    assert outcome.code is Code.INTERNAL_ERROR
    assert "10.0.0.7" not in outcome.message
    assert len(caplog.records) == 1


def test_what_is_mounted_for_operators_is_no_quick_path_and_has_its_audience():
    endpoints = directory()
    endpoints.mount("_swarm.", {"_swarm.status": lambda request, context: {}}, for_operators=True)

    access = endpoints.access_of("_swarm.status")

    assert endpoints.mounted("_swarm.status") is None  # that would go past the guard
    assert access is not None
    assert access.audience is Audience.OPERATORS
    endpoints.mount("_swarm.", {"_swarm.status": lambda request, context: {}})
    assert endpoints.mounted("_swarm.status") is not None
    assert endpoints.access_of("_swarm.status") is None


async def test_calls_are_counted_and_those_of_packages_are_not():
    async def hello() -> str:
        return "hello"

    endpoints = directory()
    endpoints.register("hello", hello)
    endpoints.mount("_dht.", {"_dht.ping": lambda request, context: "pong"})
    for name in ("hello", "hello", "_dht.ping", "unknown"):
        await serve(endpoints, name)

    assert endpoints.served_count == 3


# What is counted


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_ends_and_times_of_calls_are_counted_by_registered_name():
    clock, ends = Clock(), {}
    endpoints = directory(now=clock, ends=ends)

    async def take(seconds: float, error: Exception | None = None) -> None:
        clock.now += seconds
        if error is not None:
            raise error

    endpoints.register("take", take)
    await serve(endpoints, "take", 2.0)
    await serve(endpoints, "take", 0.5, CallError("no"))
    await serve(endpoints, "take", 0.25, OSError())
    await serve(endpoints, "take")
    await serve(endpoints, "made up")

    assert list(ends) == ["take"]
    assert (ends["take"].ok, ends["take"].took_s) == (1, 2.75)
    assert ends["take"].failed == {"failed": 1, "internal_error": 1, "bad_request": 1}


async def test_a_stream_is_counted_when_it_is_over_by_how_it_ended():
    clock, ends = Clock(), {}
    endpoints = directory(now=clock, ends=ends)

    async def tail(fails: bool) -> AsyncIterator[int]:
        for number in range(3):
            clock.now += 1.0
            yield number
        if fails:
            raise CallError("enough")

    async def items_of(fails: bool, count: int) -> None:
        outcome = await endpoints.serve(RPCRequest("tail", args=[fails]), CONTEXT, wants_items=True)
        assert isinstance(outcome, Answer)
        async with contextlib.aclosing(outcome.value.values) as items:
            for _ in range(count):
                await anext(items)

    endpoints.register("tail", tail)
    await items_of(False, 1)
    assert ends["tail"].failed == {"cancelled": 1}  # nobody read on
    with pytest.raises(StopAsyncIteration):
        await items_of(False, 4)
    with pytest.raises(RemoteError):
        await items_of(True, 4)
    await serve(endpoints, "tail", False)  # which is no way to call a stream

    assert (ends["tail"].ok, ends["tail"].took_s) == (1, 7.0)
    assert ends["tail"].failed == {"cancelled": 1, "failed": 1, "bad_request": 1}


async def test_a_name_that_is_registered_again_goes_on_counting(caplog: pytest.LogCaptureFixture):
    endpoints = directory()
    for answer in (1, 2):
        endpoints.register("add", lambda answer=answer: answer)
        await serve(endpoints, "add")

    assert endpoints.ends["add"].ok == 2


async def test_a_handler_that_is_cancelled_is_counted_so():
    endpoints, runs = directory(), asyncio.Event()

    async def wait() -> None:
        runs.set()
        await asyncio.Event().wait()

    endpoints.register("wait", wait)
    serving = asyncio.ensure_future(serve(endpoints, "wait"))
    await runs.wait()
    assert endpoints.ends["wait"].failed == {}
    serving.cancel()
    await asyncio.wait([serving])

    assert endpoints.ends["wait"].failed == {"cancelled": 1}

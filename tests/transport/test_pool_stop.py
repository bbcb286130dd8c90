from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from synapse_p2p.config import PoolConfig, SessionConfig
from synapse_p2p.exceptions import PeerUnavailable
from synapse_p2p.transport.base import parse_address
from tests.transport.pool_nodes import (
    Deaf,
    Door,
    Handlers,
    Network,
    Node,
    Peer,
    echo,
    for_ever,
    now,
    two_nodes,
    virtually,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# Stop


def test_a_stop_lets_a_running_call_finish_and_refuses_new_ones():
    async def main() -> tuple[Any, float]:
        network = Network(delay_s=0.01)

        async def wait() -> str:
            await asyncio.sleep(2)
            return "finished"

        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=wait)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        stop = asyncio.create_task(b.stop(grace=5))
        await asyncio.sleep(0.1)
        with pytest.raises(PeerUnavailable) as refused:
            await a.echo(b)
        with pytest.raises(PeerUnavailable, match="stopping"):
            await b.echo(await Node(network, 3).listen())
        answer = await call
        await stop
        stopped_at = now()
        await a.stop()

        assert not refused.value.may_have_started
        return answer, stopped_at

    answer, stopped_at = virtually(main())

    assert answer == "finished"
    assert 2 < stopped_at < 2.5


def test_a_stop_ends_what_outlasts_its_grace_and_says_it_may_have_started():
    async def main() -> float:
        network = Network(delay_s=0.01)
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=for_ever)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        started_at = now()
        await b.stop(grace=2)
        stopped_after_s = now() - started_at
        with pytest.raises(PeerUnavailable) as raised:
            await call
        await a.stop()

        assert raised.value.may_have_started
        return stopped_after_s

    assert virtually(main()) == pytest.approx(2, abs=0.1)


def test_a_stop_without_calls_does_not_wait_for_its_grace():
    async def main() -> float:
        a, b = await two_nodes()
        await a.echo(b)
        started_at = now()
        await a.stop(grace=60)
        await b.stop(grace=60)
        return now() - started_at

    assert virtually(main()) < 0.5


def test_a_stop_is_bounded_when_peers_read_nothing_and_handlers_ignore_it(caplog: pytest.LogCaptureFixture):
    release = False

    async def stubborn() -> None:
        while not release:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)

    async def main() -> float:
        nonlocal release
        network = Network()
        b = await Node(network, 2, handlers=Handlers(stubborn=stubborn, big=lambda: echo(b"x" * 1_000_000))).listen()
        others = [Node(network, number) for number in range(3, 8)]
        calls = [asyncio.create_task(other.call(b, "stubborn")) for other in others]
        await asyncio.sleep(1)
        for other in others:
            next(iter(other.pool._connections))._stream.pause_reading()  # type: ignore[union-attr]
        calls += [asyncio.create_task(other.call(b, "big")) for other in others]
        await asyncio.sleep(1)
        started_at = now()
        await b.stop(grace=1)
        stopped_after_s = now() - started_at
        release = True
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.gather(*(other.stop() for other in others))
        await asyncio.sleep(20)
        return stopped_after_s

    bound_s = 1 + PoolConfig().stop_timeout_s + SessionConfig().goodbye_timeout_s
    assert virtually(main()) <= bound_s + 0.1
    assert "5 handlers ignore" in caplog.text


def test_a_hundred_silent_peers_take_none_of_the_grace():
    async def main() -> tuple[float, int]:
        network = Network()
        b = await Node(network, 2, config=PoolConfig(max_handshakes=60)).listen()
        others = [Node(network, number) for number in range(3, 53)]
        for other in others:
            await other.echo(b)
            next(iter(other.pool._connections))._stream.pause_reading()  # type: ignore[union-attr]
        for _ in range(50):
            stream = await network.connect(*parse_address(b.address), Deaf())
            stream.pause_reading()
            stream.write(b"\xa5SYNN")
        await asyncio.sleep(0.1)
        held_count = len(b.pool._connections)
        started_at = now()
        await b.stop(grace=5)
        stopped_after_s = now() - started_at
        assert not b.pool._connections
        await asyncio.gather(*(other.stop() for other in others))
        return stopped_after_s, held_count

    stopped_after_s, held_count = virtually(main())

    assert held_count == 100
    assert stopped_after_s <= SessionConfig().goodbye_timeout_s


def test_a_call_whose_place_comes_free_because_the_node_stops_is_refused_unstarted():
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()
        return "done"

    async def main() -> None:
        network = Network()
        handlers = Handlers(stubborn=stubborn)
        session_config = SessionConfig(max_calls_served=1)
        a, b = Node(network, 1), await Node(network, 2, handlers=handlers, session_config=session_config).listen()
        calls = [asyncio.create_task(a.call(b, "stubborn")) for _ in range(3)]
        await asyncio.sleep(1)
        await b.stop()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await a.stop()

        assert answers[0] == "done"
        assert [type(answer) for answer in answers[1:]] == [PeerUnavailable] * 2
        assert handlers.ran["stubborn",] == 1

    virtually(main())


@pytest.mark.parametrize("start", ["connect_address", "check_dial", "call"])
@pytest.mark.parametrize("where", ["connect", "handshake"])
def test_a_stop_ends_what_is_being_dialed(start: str, where: str):
    async def main() -> float:
        network = Network(delay_s=0.01)
        a = Node(network, 1)
        address = "10.9.9.9:1"
        if where == "connect":
            network.silent.add(address)
        else:
            await network.listen(*parse_address(address), Deaf)
        peer = Peer(bytes(32), (address,))
        starts: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "connect_address": lambda: a.pool.connect_address(address),
            "check_dial": lambda: a.pool.check_dial(peer),
            "call": lambda: a.pool.call(peer, "echo", {}, timeout_s=60),
        }
        waiting = asyncio.create_task(starts[start]())
        await asyncio.sleep(0.1)
        started_at = now()
        await a.stop(grace=5)
        stopped_after_s = now() - started_at
        with pytest.raises(PeerUnavailable, match="stopping"):
            await waiting
        return stopped_after_s

    assert virtually(main()) < 0.1


def test_a_stop_ends_handshakes_of_others_too():
    async def main() -> float:
        network = Network()
        b = await Node(network, 2).listen()
        stream = await network.connect(*parse_address(b.address), Door(b))
        stream.write(b"\xa5SYNN")
        await asyncio.sleep(0.1)
        started_at = now()
        await b.stop(grace=5)
        return now() - started_at

    assert virtually(main()) < 0.1


def test_who_knocks_while_the_pool_stops_is_turned_away():
    async def main() -> None:
        network = Network(delay_s=0.01)
        gate = asyncio.Event()
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=gate.wait)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        late = Node(network, 3)
        in_handshake = asyncio.create_task(late.echo(b))
        await asyncio.sleep(0.045)  # one round trip to connect, two and a half for the handshake
        stop = asyncio.create_task(b.pool.stop(5))
        await asyncio.sleep(0)
        latest = asyncio.create_task(Node(network, 4).echo(b))
        results = await asyncio.gather(in_handshake, latest, return_exceptions=True)
        gate.set()
        await asyncio.gather(call, stop)
        await asyncio.gather(a.stop(), late.stop(), b.stop())

        assert [type(result) for result in results] == [PeerUnavailable] * 2
        assert not b.pool._connections

    virtually(main())


def test_a_stopped_pool_dials_nobody_until_it_is_opened_again():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        await asyncio.gather(a.pool.stop(), a.pool.stop(0))
        await a.pool.stop()
        with pytest.raises(PeerUnavailable, match="stopping"):
            await a.echo(b)
        a.pool.open()
        answers = [await a.echo(b), await b.echo(a)]
        await asyncio.gather(a.stop(), b.stop())

        assert answers == ["hello"] * 2

    virtually(main())


def test_a_stop_that_is_cancelled_leaves_no_connection():
    async def main() -> None:
        network = Network()
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(wait=for_ever)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await b.pool.stop(60)
        with pytest.raises(PeerUnavailable):
            await call
        assert not b.pool._connections
        await asyncio.gather(a.stop(), b.stop())

    virtually(main())


@pytest.mark.parametrize("delay_s", [0.0, 1.0], ids=["not begun", "running"])
def test_a_handler_that_stops_its_own_node_leaves_no_other_call_of_its_session_behind(delay_s: float):
    async def main() -> tuple[list[Any], int]:
        network = Network()

        async def stop() -> str:
            if delay_s:
                await asyncio.sleep(delay_s)
            await b.stop()
            return "stopped"

        a, b = Node(network, 1), Node(network, 2, handlers=Handlers(stop=stop, wait=for_ever))
        await b.listen()
        await a.echo(b)
        # The first leaves by itself, and the others together.
        calls = [asyncio.create_task(a.call(b, name)) for name in ("wait", "stop", *["wait"] * 70)]
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(2)
        held_count = len(b.pool)
        await a.stop()
        return outcomes, held_count

    outcomes, held_count = virtually(main())

    assert outcomes.pop(1) == "stopped"
    assert {type(outcome) for outcome in outcomes} == {PeerUnavailable}
    assert held_count == 0


def test_a_handler_may_stop_its_own_node():
    async def main() -> list[str]:
        network = Network()
        ended: list[str] = []

        async def stop() -> None:
            await b.stop(grace=1)
            ended.append("stopped")

        a, b = Node(network, 1), Node(network, 2, handlers=Handlers(stop=stop))
        await b.listen()
        await a.call(b, "stop")  # answered: its own stop does not wait for it, nor cut it off
        ended.append("answered")
        await asyncio.sleep(5)
        await a.stop()
        return ended

    assert virtually(main()) == ["stopped", "answered"]


# Being cancelled


@pytest.mark.parametrize("delay_s", [0.0, 0.001])
def test_a_call_cancelled_at_any_moment_leaves_nothing_behind(delay_s: float):
    async def main() -> Counter[str]:
        outcomes = Counter[str]()
        for turns in range(70):
            network = Network(delay_s=delay_s)
            handlers = Handlers(slow=lambda: asyncio.sleep(2 * delay_s))
            a, b = Node(network, 1), await Node(network, 2, handlers=handlers).listen()
            call = asyncio.create_task(a.call(b, "slow", timeout_s=60))
            for _ in range(turns):
                await asyncio.sleep(delay_s / 5)
            was_done = call.done()
            call.cancel()
            (result,) = await asyncio.gather(call, return_exceptions=True)
            assert was_done or isinstance(result, asyncio.CancelledError)
            outcomes["done" if was_done else "cancelled"] += 1
            await asyncio.sleep(1)
            assert sum(connection.calls_in_flight for node in (a, b) for connection in node.pool._connections) == 0
            assert len(a.pool._connections) == len(b.pool._connections) <= 1
            assert not a.pool._dials
            assert await a.echo(b) == "hello"
            await asyncio.gather(a.stop(), b.stop())
            assert not a.pool._connections
            assert not b.pool._connections
        return outcomes

    outcomes = virtually(main())

    assert min(outcomes["done"], outcomes["cancelled"]) > 5


def test_a_check_dial_cancelled_at_any_moment_leaves_nothing_behind():
    async def main() -> None:
        for turns in range(40):
            network = Network(delay_s=0.001)
            a, b = Node(network, 1), await Node(network, 2).listen()
            check = asyncio.create_task(a.pool.check_dial(b.peer))
            await asyncio.sleep(turns * 0.0003)
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)
            await asyncio.sleep(1)
            assert not a.pool._connections
            assert not b.pool._connections
            await asyncio.gather(a.stop(), b.stop())

    virtually(main())


def test_a_check_dial_that_is_cancelled_hangs_up_at_once():
    async def main() -> None:
        network = Network()
        a = Node(network, 1)
        deaf = Deaf()
        await network.listen("10.9.9.9", 1, lambda: deaf)
        check = asyncio.create_task(a.pool.check_dial(Peer(bytes(32), ("10.9.9.9:1",))))
        await asyncio.sleep(0.1)
        was_hung_up_on = deaf.is_hung_up_on
        check.cancel()
        await asyncio.sleep(0.1)
        is_hung_up_on = deaf.is_hung_up_on
        await a.stop()

        assert not was_hung_up_on
        assert is_hung_up_on

    virtually(main())


def test_a_caller_cancelled_while_the_pool_stops_was_cancelled():
    async def main() -> int:
        cancelled_count = 0
        for turns in range(15):
            network = Network()
            network.silent.add("10.9.9.9:1")
            a = Node(network, 1)
            waiting = asyncio.create_task(a.pool.connect_address("10.9.9.9:1"))
            await asyncio.sleep(0.1)
            stop = asyncio.create_task(a.pool.stop())
            for _ in range(turns):
                await asyncio.sleep(0)
            was_cancelled = waiting.cancel()
            (result,) = await asyncio.gather(waiting, return_exceptions=True)
            await stop
            assert isinstance(result, asyncio.CancelledError if was_cancelled else PeerUnavailable)
            cancelled_count += was_cancelled
        return cancelled_count

    assert 2 < virtually(main()) < 15

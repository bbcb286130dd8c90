from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from contextvars import ContextVar
from typing import Any

import pytest

from synapse_p2p.config import PoolConfig, SessionConfig
from synapse_p2p.exceptions import ConfigError, HandshakeFailed, PeerUnavailable, RemoteError, Timeout
from synapse_p2p.identity import Identity
from synapse_p2p.transport.base import parse_address
from synapse_p2p.transport.connection import SessionConnection
from tests.transport.pool_nodes import (
    HOST,
    Handlers,
    Network,
    Node,
    Peer,
    for_ever,
    now,
    two_nodes,
    virtually,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")

WHOSE: ContextVar[str] = ContextVar("whose", default="nobody's")


# Sessions


@pytest.mark.parametrize(("max_control_calls", "refused"), [(128, 0), (1000, 600 - 256)])
def test_a_burst_of_overlay_calls_waits_here_instead_of_being_refused_there(max_control_calls: int, refused: int):
    async def slow(value: int) -> int:
        await asyncio.sleep(0.1)
        return value

    async def main() -> list[Any]:
        network = Network(delay_s=0.01)
        a = Node(network, 1, session_config=SessionConfig(max_control_calls=max_control_calls))
        b = await Node(network, 2, handlers=Handlers(**{"_dht.slow": slow})).listen()
        answers = await asyncio.gather(*(a.call(b, "_dht.slow", n) for n in range(600)), return_exceptions=True)
        await asyncio.gather(a.stop(), b.stop())
        return answers

    answers = virtually(main())

    assert sum(isinstance(answer, RemoteError) and answer.code == "busy" for answer in answers) == refused
    assert sum(answer == n for n, answer in enumerate(answers)) == 600 - refused


def test_a_handler_that_is_torn_down_still_ends_its_call(caplog: pytest.LogCaptureFixture):
    class TornDown(BaseException):
        """What a library throws to get out of everything."""

    async def torn() -> None:
        raise TornDown

    async def main() -> tuple[list[Any], str]:
        network = Network(delay_s=0.01)
        a, b = Node(network, 1), await Node(network, 2, handlers=Handlers(torn=torn)).listen()
        ends = await asyncio.gather(*(a.call(b, "torn", timeout_s=5) for _ in range(100)), return_exceptions=True)
        answer = await a.echo(b)
        await asyncio.gather(a.stop(), b.stop())
        return ends, answer

    ends, answer = virtually(main())

    assert {type(end) for end in ends} == {RemoteError}
    assert {end.code for end in ends} == {"internal_error"}
    assert answer == "hello"
    assert len([record for record in caplog.records if record.exc_info]) == len(ends)
    caplog.clear()


def test_a_call_that_arrives_is_no_part_of_what_its_session_was_opened_for_nor_of_another_call():
    async def whose() -> str:
        seen = WHOSE.get()
        WHOSE.set("another call's")
        await asyncio.sleep(0.1)
        return seen

    async def main() -> list[str]:
        network = Network(delay_s=0.01)
        one_at_a_time = SessionConfig(max_calls_served=1)
        a = await Node(network, 1, handlers=Handlers(whose=whose), session_config=one_at_a_time).listen()
        b = await Node(network, 2, session_config=one_at_a_time).listen()
        WHOSE.set("ours")
        await a.echo(b)
        answers = await asyncio.gather(*(b.call(a, "whose") for _ in range(3)))
        await asyncio.gather(a.stop(), b.stop())
        return answers

    assert virtually(main()) == ["nobody's"] * 3


def test_calls_share_the_session_that_the_first_one_opened():
    async def main() -> None:
        a, b = await two_nodes()
        answers = [await a.echo(b, number) for number in range(5)]
        answer = await a.pool.call(b.peer, "echo", {"value": "named"}, timeout_s=5)
        await asyncio.gather(a.stop(), b.stop())

        assert answers == list(range(5))
        assert answer == "named"
        assert a.network.dialed == [b.address]

    virtually(main())


def test_a_client_is_called_back_over_its_own_session():
    async def main() -> None:
        network = Network()
        client, server = Node(network, 1), await Node(network, 2).listen()
        with pytest.raises(PeerUnavailable, match="no address and no session"):
            await server.echo(client)
        await client.echo(server)
        answer = await server.echo(client, "back")
        await asyncio.gather(client.stop(), server.stop())

        assert answer == "back"
        assert network.dialed == [server.address]

    virtually(main())


def test_a_pool_knows_whom_it_is_connected_to_and_how():
    async def main() -> None:
        a, b = await two_nodes()
        proved = await a.pool.connect(b.peer)
        by_address = await a.pool.connect_address(b.address)

        assert (proved.id, proved.addresses) == (by_address.id, by_address.addresses) == (b.id, (b.address,))
        assert parse_address(proved.seen)[0] == HOST
        assert a.pool.is_connected(b.id)
        assert b.pool.is_connected(a.id)
        assert a.pool.peer_ids() == [b.id]
        assert (a.pool.proved_addresses(b.id), b.pool.proved_addresses(a.id)) == ((b.address,), ())
        assert a.pool.seen_hosts() == Counter({HOST: 1})
        await asyncio.gather(a.stop(), b.stop())
        assert not a.pool.is_connected(b.id)
        assert not b.pool.is_connected(a.id)
        assert (a.pool.peer_ids(), a.pool.seen_hosts(), a.pool.proved_addresses(b.id)) == ([], Counter(), ())

    virtually(main())


def test_fifty_callers_share_one_dial():
    async def main() -> None:
        a, b = await two_nodes()
        answers = await asyncio.gather(*(a.echo(b, number) for number in range(50)))
        await asyncio.gather(a.stop(), b.stop())

        assert answers == list(range(50))
        assert a.network.dialed == [b.address]
        assert b.accepted_count == 1

    virtually(main())


def test_a_caller_who_gives_up_leaves_the_dial_to_the_others():
    async def main() -> None:
        a, b = await two_nodes()
        callers = [asyncio.create_task(a.echo(b, number)) for number in range(3)]
        await asyncio.sleep(0.005)
        callers[0].cancel()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        await asyncio.gather(a.stop(), b.stop())

        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [1, 2]
        assert b.accepted_count == 1

    virtually(main())


def test_a_failed_dial_fails_for_all_who_wait_for_it():
    async def main() -> None:
        a, b = await two_nodes()
        await b.stop()
        errors = await asyncio.gather(*(a.echo(b) for _ in range(5)), return_exceptions=True)
        await a.stop()

        assert [type(error) for error in errors] == [PeerUnavailable] * 5
        assert [error.may_have_started for error in errors] == [False] * 5
        assert a.network.dialed == [b.address]

    virtually(main())


def test_a_dial_that_fails_when_all_who_waited_for_it_have_given_up_is_not_complained_of():
    async def main() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        a, b = await two_nodes()
        await b.stop()
        callers = [asyncio.create_task(a.echo(b, number)) for number in range(2)]
        await asyncio.sleep(0.005)
        for caller in callers:
            caller.cancel()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 2
        assert a.network.dialed == [b.address] and a.pool._dials  # it goes on
        await asyncio.sleep(1)
        assert not a.pool._dials
        await a.stop()
        del caller, callers, answers
        gc.collect()

        assert complaints == []

    virtually(main())


def test_the_next_address_is_tried_when_one_does_not_answer():
    async def main() -> None:
        a, b = await two_nodes()
        peer = Peer(b.id, ("10.9.9.9:1", "10.9.9.9:2", b.address))
        a.network.silent.add("10.9.9.9:2")
        answer = await a.pool.call_with(peer, "echo", ["found"], {}, timeout_s=10)
        await asyncio.gather(a.stop(), b.stop())

        assert answer == "found"
        assert a.network.dialed == list(peer.addresses)

    virtually(main())


def test_two_pools_that_dial_each_other_at_any_two_moments_keep_one_session_and_lose_no_call():
    async def meet(number: int, rng: random.Random) -> int:
        network = Network(latency=lambda: rng.uniform(0.0, 0.05))
        a, b = await Node(network, 2 * number % 250).listen(), await Node(network, 2 * number % 250 + 1).listen()

        async def calls(caller: Node, other: Node, delay_s: float) -> list[Any]:
            await asyncio.sleep(delay_s)
            return [await caller.echo(other, value) for value in range(5)]

        offset_s = rng.uniform(-0.12, 0.12)
        answers = await asyncio.gather(calls(a, b, offset_s), calls(b, a, -offset_s))
        await asyncio.sleep(1)
        kept_counts = [len(node.pool._connections) for node in (a, b)]
        dialed_count = len(network.dialed)
        later = await asyncio.gather(a.echo(b), b.echo(a))
        await asyncio.gather(a.stop(), b.stop())

        assert answers == [list(range(5))] * 2
        assert kept_counts == [1, 1]
        assert later == ["hello"] * 2
        assert len(network.dialed) == dialed_count
        return dialed_count

    async def main() -> Counter[int]:
        rng = random.Random(1)
        return Counter([await meet(number, rng) for number in range(150)])

    dial_counts = virtually(main())

    assert dial_counts[2] > 30  # else they hardly ever met


def test_two_pools_that_dial_each_other_at_the_same_instant_keep_one_session():
    async def main() -> None:
        for number in range(10):
            network = Network(delay_s=0.01)
            a, b = await Node(network, 2 * number).listen(), await Node(network, 2 * number + 1).listen()
            values = range(20)
            answers = await asyncio.gather(*(a.echo(b, v) for v in values), *(b.echo(a, v) for v in values))
            await asyncio.sleep(1)
            kept_counts = [len(node.pool._connections) for node in (a, b)]
            survivor = next(iter(a.pool._connections))
            await asyncio.gather(a.stop(), b.stop())

            assert answers == [*values] * 2
            assert kept_counts == [1, 1]
            assert survivor.is_dialer == (a.id < b.id)
            assert len(network.dialed) == 2

    virtually(main())


def test_sessions_with_two_instances_of_one_identity_never_merge():
    async def main() -> None:
        network = Network()
        server = await Node(network, 1).listen()
        twins = [Node(network, 2, instance=1), Node(network, 2, instance=2)]
        for twin in twins:
            await twin.echo(server)
        await asyncio.sleep(1)
        answers = [await twin.echo(server) for twin in twins]
        await asyncio.gather(server.stop(), *(twin.stop() for twin in twins))

        assert answers == ["hello"] * 2
        assert len(network.dialed) == 2

    virtually(main())


def test_a_restarted_peer_is_reached_again():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        await b.crash()
        await asyncio.sleep(1)
        again = await Node(a.network, 2, instance=1).listen(parse_address(b.address)[1])
        answer = await a.echo(again)
        await asyncio.gather(a.stop(), again.stop())

        assert answer == "hello"
        assert again.accepted_count == 1

    virtually(main())


def test_a_restarted_peer_that_dials_us_is_called_over_the_new_session():
    async def main() -> None:
        network = Network()
        a, b = await Node(network, 1).listen(), await Node(network, 2).listen()
        await a.echo(b)
        again = Node(network, 2, instance=1)
        await again.listen()
        await again.echo(a)
        await a.echo(again, "new")
        await asyncio.gather(a.stop(), b.stop(), again.stop())

        assert again.handlers.ran == Counter({("echo", "new"): 1})

    virtually(main())


# What never left is tried once more, what may have started is not


def test_a_call_over_a_session_that_died_a_moment_ago_dials_anew():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        for end in (*a.pool._connections, *b.pool._connections):
            end.abort()
        answer = await a.echo(b, "again")
        await asyncio.gather(a.stop(), b.stop())

        assert answer == "again"
        assert b.handlers.ran["echo", "again"] == 1

    virtually(main())


def test_a_call_that_crosses_a_goodbye_is_made_once_more_and_runs_once():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        next(iter(b.pool._connections)).close("idle")
        answer = await a.echo(b, "crossing")
        await asyncio.gather(a.stop(), b.stop())

        assert answer == "crossing"
        assert b.handlers.ran["echo", "crossing"] == 1
        assert len(a.network.dialed) == 2

    virtually(main())


def test_a_second_try_whose_dial_turns_out_a_duplicate_takes_the_session_that_survives():
    async def main() -> None:
        network = Network(latency=iter([0.01, 0.008, 0.01]).__next__)
        nodes = [await Node(network, number).listen() for number in (1, 2)]
        smaller, larger = sorted(nodes, key=lambda node: node.id)
        await larger.echo(smaller)
        next(iter(smaller.pool._connections)).close("idle")
        # The larger one's call crosses the goodbye; when it dials again, the smaller one dials as well, and faster.
        answers = await asyncio.gather(larger.echo(smaller, "crossing"), smaller.echo(larger, "back"))
        await asyncio.gather(smaller.stop(), larger.stop())

        assert answers == ["crossing", "back"]
        assert network.dialed == [smaller.address, larger.address, smaller.address]

    virtually(main())


def test_a_call_that_may_have_started_is_not_repeated():
    async def main() -> None:
        handlers = Handlers(wait=for_ever)
        network = Network()
        a, b = await Node(network, 1).listen(), await Node(network, 2, handlers=handlers).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        next(iter(b.pool._connections)).abort()
        with pytest.raises(PeerUnavailable) as raised:
            await call
        await asyncio.gather(a.stop(), b.stop())

        assert raised.value.may_have_started
        assert handlers.ran["wait",] == 1
        assert len(network.dialed) == 1

    virtually(main())


@pytest.mark.parametrize("is_in_use", [False, True])
def test_a_call_that_crosses_the_retirement_of_its_session_is_made_over_another(is_in_use: bool):
    async def main() -> tuple[int, list[Any]]:
        network = Network(delay_s=0.01)
        gate = asyncio.Event()
        a, b = await Node(network, 1).listen(), await Node(network, 2, handlers=Handlers(wait=gate.wait)).listen()
        await a.echo(b)
        running = [asyncio.create_task(a.call(b, "wait"))] if is_in_use else []
        await asyncio.sleep(1)
        next(iter(b.pool._connections)).retire("idle")
        answers = [await a.echo(b, "crossing"), await a.echo(b, "later")]
        gate.set()
        answers += await asyncio.gather(*running)
        await asyncio.sleep(1)
        kept_counts = [len(node.pool._connections) for node in (a, b)]
        await asyncio.gather(a.stop(), b.stop())

        assert b.handlers.ran["echo", "crossing"] == b.handlers.ran["echo", "later"] == 1
        assert kept_counts == [1, 1]
        return len(network.dialed), answers

    assert virtually(main()) == (2, ["crossing", "later", True][: 2 + is_in_use])


def test_a_node_that_was_away_dials_anew_and_the_calls_that_run_come_back():
    async def main() -> None:
        network = Network()
        gate = asyncio.Event()
        a, b = await Node(network, 1).listen(), await Node(network, 2, handlers=Handlers(wait=gate.wait)).listen()
        c = Node(network, 3)
        await asyncio.gather(a.echo(b), c.echo(a))
        with pytest.raises(PeerUnavailable):
            await a.pool.connect_address(f"{HOST}:9")
        running = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        network.dialed.clear()

        a.pool.retire_sessions()
        open_now = a.pool.peer_ids()
        with pytest.raises(PeerUnavailable):
            await a.pool.connect_address(f"{HOST}:9")
        answers = [await a.echo(b, "again")]
        gate.set()
        answers.append(await running)
        await asyncio.sleep(2)
        kept_counts = [len(node.pool._connections) for node in (a, b, c)]
        a.pool.retire_sessions()
        await asyncio.gather(a.stop(), b.stop(), c.stop())

        assert open_now == []
        assert network.dialed == [f"{HOST}:9", b.address]
        assert answers == ["again", True]
        assert kept_counts == [1, 1, 0]

    virtually(main())


def test_a_stream_that_closes_under_a_call_before_it_was_written_is_no_answer():
    async def main() -> None:
        a, b = await two_nodes()
        await a.echo(b)
        connection = next(iter(a.pool._connections))
        calls = [asyncio.create_task(a.echo(b, number)) for number in range(3)]
        await asyncio.sleep(0)  # one has left, two wait for the end of this turn of the loop
        connection.abort()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.gather(a.stop(), b.stop())

        assert [end.may_have_started for end in ends if isinstance(end, PeerUnavailable)] == [True]
        assert ends[1:] == [1, 2]
        assert all(count == 1 for count in b.handlers.ran.values())

    virtually(main())


def test_a_peer_that_goes_on_refusing_is_asked_twice_and_no_more(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        a, b = await two_nodes()
        original = b.pool._on_established

        def establish_and_refuse(connection: SessionConnection) -> None:
            original(connection)
            connection.drain()

        monkeypatch.setattr(b.pool, "_on_established", establish_and_refuse)
        with pytest.raises(PeerUnavailable) as raised:
            await a.echo(b)
        await asyncio.gather(a.stop(), b.stop())

        assert not raised.value.may_have_started
        assert len(a.network.dialed) == 2

    virtually(main())


# Time


@pytest.mark.parametrize("addresses", [("10.9.9.9:1",), ("10.9.9.9:1", "10.9.9.9:2", "10.9.9.9:3")])
def test_the_time_of_a_call_covers_its_dials(addresses: tuple[str, ...]):
    async def main() -> float:
        network = Network()
        network.silent.update(addresses)
        a = Node(network, 1)
        with pytest.raises(Timeout, match="not started"):
            await a.pool.call(Peer(bytes(32), addresses), "echo", {}, timeout_s=0.5)
        ended_at = now()
        await a.stop()
        return ended_at

    assert virtually(main()) == 0.5


def test_a_dial_ends_after_its_own_limit():
    async def main() -> float:
        network = Network()
        network.silent.add("10.9.9.9:1")
        a = Node(network, 1)
        with pytest.raises(Timeout):
            await a.pool.connect_address("10.9.9.9:1")
        ended_at = now()
        await a.stop()
        return ended_at

    assert virtually(main()) == PoolConfig().dial_timeout_s


def test_a_dead_address_rests_longer_each_time_and_not_after_it_answered():
    async def main() -> None:
        network = Network()
        a, b = Node(network, 1), await Node(network, 2).listen()
        port = parse_address(b.address)[1]
        await b.stop()
        dialed_at: list[float] = []
        while now() < 10:
            count = len(network.dialed)
            with pytest.raises(PeerUnavailable):
                await a.echo(b)
            dialed_at += [now()] * (len(network.dialed) - count)
            await asyncio.sleep(0.25)
        await b.listen(port)
        await asyncio.sleep(PoolConfig().max_redial_pause_s)
        await a.echo(b)
        await b.stop()
        await asyncio.sleep(1)
        errors = await asyncio.gather(*(a.echo(b) for _ in range(2)), return_exceptions=True)
        await asyncio.sleep(PoolConfig().redial_pause_s)
        count = len(network.dialed)
        with pytest.raises(PeerUnavailable, match="reached"):
            await a.echo(b)
        await a.stop()

        assert dialed_at == [0, 1, 3, 7]
        assert [type(error) for error in errors] == [PeerUnavailable] * 2
        assert len(network.dialed) == count + 1

    virtually(main())


# Somebody else, or nobody


def test_somebody_else_at_an_address_is_an_error_and_no_fault_of_the_address():
    async def main() -> None:
        a, b = await two_nodes()
        stranger = Identity.from_seed(b"s" * 32).node_id
        with pytest.raises(HandshakeFailed) as raised:
            await a.pool.connect_address(b.address, stranger)
        with pytest.raises(PeerUnavailable):
            await a.pool.call(Peer(stranger, (b.address,)), "echo", {}, timeout_s=5)
        answer = await a.echo(b)
        await asyncio.gather(a.stop(), b.stop())

        assert raised.value.reason == "identity"
        assert answer == "hello"

    virtually(main())


def test_dialing_oneself_is_an_error_and_no_fault_of_the_address():
    async def main() -> None:
        a, b = await two_nodes()
        for _ in range(2):
            with pytest.raises(HandshakeFailed) as raised:
                await a.pool.connect_address(a.address)
            assert raised.value.reason == "self"
        await asyncio.gather(a.stop(), b.stop())

    virtually(main())


@pytest.mark.parametrize("address", ["nonsense", "10.0.0.1", "10.0.0.1:99999", "::1:80"])
def test_an_address_that_is_none_is_a_config_error(address: str):
    async def main() -> None:
        a = Node(Network(), 1)
        with pytest.raises(ConfigError):
            await a.pool.connect_address(address)
        with pytest.raises(PeerUnavailable):
            await a.pool.call(Peer(bytes(32), (address,)), "echo", {}, timeout_s=5)
        await a.stop()

    virtually(main())


# The check dial


def test_a_check_dial_proves_an_address_and_leaves_the_open_session_alone():
    async def main() -> None:
        network = Network(delay_s=0.01)
        gate = asyncio.Event()
        a = await Node(network, 1).listen()
        b = await Node(network, 2, handlers=Handlers(wait=gate.wait)).listen()
        call = asyncio.create_task(a.call(b, "wait"))
        await asyncio.sleep(1)
        sessions = [list(node.pool._connections) for node in (a, b)]
        await a.pool.check_dial(b.peer)
        await asyncio.sleep(1)
        sessions_after = [list(node.pool._connections) for node in (a, b)]
        gate.set()
        answer = await call
        answers = await asyncio.gather(a.echo(b), b.echo(a))
        await asyncio.gather(a.stop(), b.stop())

        assert sessions == sessions_after
        assert answer is True
        assert answers == ["hello"] * 2
        assert len(network.dialed) == 2

    virtually(main())


def test_a_member_knows_that_it_was_dialed_by_a_check_dial_or_another_member_and_not_by_a_command():
    async def main() -> None:
        network = Network(delay_s=0.01)
        first = await Node(network, 1).listen()
        command, member, newcomer = Node(network, 2), await Node(network, 3).listen(), await Node(network, 4).listen()

        await command.echo(first)
        assert first.pool.dialed_at is None
        await member.echo(first)
        dialed_at = first.pool.dialed_at
        assert dialed_at == pytest.approx(now(), abs=1)
        assert member.pool.dialed_at is None
        await asyncio.sleep(10)
        await first.pool.check_dial(member.peer)
        assert member.pool.dialed_at == pytest.approx(now(), abs=1)
        assert first.pool.dialed_at == dialed_at
        await member.echo(newcomer)
        await command.echo(newcomer)
        assert newcomer.pool.dialed_at == pytest.approx(now(), abs=1)
        await asyncio.gather(*(node.stop() for node in (first, command, member, newcomer)))

    virtually(main())


def test_no_call_goes_over_a_check_dial_in_either_direction():
    async def main() -> None:
        network = Network()
        gate = asyncio.Event()
        handlers = Handlers(**{"_synapse.ping": gate.wait})
        a, b = await Node(network, 1).listen(), await Node(network, 2, handlers=handlers).listen()
        check = asyncio.create_task(a.pool.check_dial(b.peer))
        await asyncio.sleep(1)
        was_connected = a.pool.is_connected(b.id)
        await a.echo(b)
        dialed_count = len(network.dialed)
        await b.echo(a)
        gate.set()
        await check
        await asyncio.gather(a.stop(), b.stop())

        assert not was_connected
        assert dialed_count == len(network.dialed) == 2

    virtually(main())


def test_a_check_dial_fails_for_another_id_for_nobody_and_without_an_address():
    async def main() -> None:
        a, b = await two_nodes()
        with pytest.raises(HandshakeFailed) as raised:
            await a.pool.check_dial(Peer(bytes(32), (b.address,)))
        with pytest.raises(PeerUnavailable):
            await a.pool.check_dial(Peer(b.id, ("10.9.9.9:1",)))
        with pytest.raises(PeerUnavailable, match="no address"):
            await a.pool.check_dial(Peer(b.id, ()))
        a.network.silent.add("10.9.9.9:2")
        with pytest.raises(Timeout):
            await a.pool.check_dial(Peer(b.id, ("10.9.9.9:2",)))
        await asyncio.gather(a.stop(), b.stop())

        assert raised.value.reason == "identity"
        assert not a.pool._connections
        assert not b.pool._connections

    virtually(main())


def test_a_check_dial_that_meets_somebody_else_blames_neither_the_id_nor_the_address():
    async def main() -> tuple[str, str]:
        a, b = await two_nodes()
        c = await Node(a.network, 3).listen()
        with pytest.raises(HandshakeFailed) as raised:
            await a.pool.check_dial(Peer(b.id, (c.address,)))
        assert raised.value.reason == "identity"
        addresses = [(await a.pool.connect_address(node.address)).addresses[0] for node in (b, c)]
        answers = await a.echo(b), await a.echo(c)
        await a.pool.check_dial(b.peer)
        await asyncio.gather(a.stop(), b.stop(), c.stop())

        assert addresses == [b.address, c.address]
        return answers

    assert virtually(main()) == ("hello", "hello")


def test_a_peer_that_is_too_busy_to_answer_the_check_is_proved_all_the_same():
    async def busy() -> None:
        raise RemoteError("busy", "later")

    async def main() -> None:
        network = Network()
        a = await Node(network, 1).listen()
        b = await Node(network, 2, handlers=Handlers(**{"_synapse.ping": busy})).listen()
        await a.pool.check_dial(b.peer)
        await asyncio.gather(a.stop(), b.stop())

    virtually(main())

"""The virtual network: what a run repeats, what a message costs in time, and how sessions and hosts fail."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random

import pytest

from dht.contact import Contact
from simulations.network import EPOCH_S, ConstantLatency, Digest, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.config import PoolConfig, ServerConfig
from synapse_p2p.exceptions import (
    CallError,
    ConfigError,
    HandshakeFailed,
    InvalidMessageError,
    PeerUnavailable,
    RemoteError,
    Timeout,
)
from synapse_p2p.peers import Host, PeerCaller
from synapse_p2p.protocol.pool_policy import sessions_to_close
from synapse_p2p.protocol.wire import Call, Result, encode_message
from synapse_p2p.transport.open_connections import SETTLE_S

ONE_WAY_S = 0.04
ROUND_TRIP_S = 2 * ONE_WAY_S
PLENTY_S = 30.0


def make_network(*, seed=1, latency=None, **pool):
    config = ServerConfig(pool=PoolConfig(**pool))
    loop = asyncio.get_running_loop()
    return VirtualNetwork(loop, random.Random(seed), latency or ConstantLatency(ONE_WAY_S), Digest(), config=config)


def make_host(network, name=""):
    """A host that answers `_dht.echo`, in the network of that name."""
    host = network.host(network=name)
    mount_echo(host)
    return host


def mount_echo(host):
    """Answer with the request and who asked."""
    host.mount("_dht.", {"_dht.echo": lambda request, context: {**request, "peer": context.peer}})


def contact_of(host):
    return Contact(host.id, host.advertised_addresses)


async def echo(host, other, *, timeout_s=PLENTY_S):
    return await host.peers.call(contact_of(other), "_dht.echo", {"text": "hello"}, timeout_s=timeout_s)


async def duration(awaitable):
    """Virtual seconds until it ended, and what it raised or returned."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    try:
        outcome = await awaitable
    except Exception as error:
        outcome = error
    return round(loop.time() - started_at, 6), outcome


def simulated(test):
    """Run an asynchronous test in virtual time; no task may be left, and no error without an owner."""

    def run_test():
        async def main():
            reports = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
            await test()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            gc.collect()
            assert reports == []

        run(main())

    run_test.__name__ = test.__name__
    return run_test


# What repeats.


async def busy_run(seed):
    network = make_network(seed=seed, latency=JitteryLatency(seed))
    hosts = [make_host(network) for _ in range(8)]

    async def talk(host):
        for _ in range(10):
            other = host.runtime.rng.choice([peer for peer in hosts if peer is not host])
            try:
                await echo(host, other, timeout_s=0.3)
            except (PeerUnavailable, Timeout):
                await asyncio.sleep(host.runtime.rng.random())

    async def break_things():
        await asyncio.sleep(0.5)
        hosts[0].crash()
        hosts[1].fall_silent()
        await asyncio.sleep(0.5)
        hosts[0].restart()
        mount_echo(hosts[0])

    await asyncio.gather(*(talk(host) for host in hosts[2:]), break_things())
    return network.digest.hexdigest(), network.digest.message_count


class JitteryLatency:
    def __init__(self, seed):
        self.rng = random.Random(seed)

    def __call__(self, source, target):
        return self.rng.uniform(0.01, 0.2)


def test_same_seed_gives_the_same_digest_and_another_seed_another():
    first, again, other = run(busy_run(1)), run(busy_run(1)), run(busy_run(2))

    assert first == again
    assert first[1] > 100
    assert first[0] != other[0]


def test_digest_is_sha256_over_time_ids_endpoint_and_bytes():
    digest = Digest()
    source, target = bytes(range(32)), bytes(32)

    digest.add_message(1_000_001, source, target, "_dht.echo", b"body")
    digest.add_fault(1_000_002, target, "crash")

    message = (
        b"M" + (1_000_001).to_bytes(8, "big") + source + target + b"\0\x09" + b"\0\0\0\x04" + b"_dht.echo" + b"body"
    )
    fault = b"F" + (1_000_002).to_bytes(8, "big") + target + b"\0\x05" + b"crash"
    assert digest.hexdigest() == hashlib.sha256(message + fault).hexdigest()
    assert digest.message_count == 1


@simulated
async def test_delivered_bytes_are_those_of_the_wire():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    seen = []
    network.digest.add_message = lambda *message: seen.append(message)

    await echo(alice, bob, timeout_s=1.0)

    request = Call(2, "_dht.echo", [], {"text": "hello"}, {"deadline_ms": 840})
    result = Result(2, {"text": "hello", "peer": alice.id})
    assert [(at_us, source, endpoint) for at_us, source, _, endpoint, _ in seen] == [
        (40_000, alice.id, "connect"),
        (80_000, bob.id, "connect"),
        (120_000, alice.id, "hello"),
        (160_000, bob.id, "hello"),
        (200_000, alice.id, "confirm"),
        (200_000, alice.id, "_dht.echo"),
        (240_000, bob.id, "_dht.echo"),
    ]
    assert [message[4] for message in seen[-2:]] == [encode_message(request), encode_message(result)]


@simulated
async def test_hosts_have_ids_addresses_and_chance_of_their_own():
    network = make_network()

    hosts = [network.host() for _ in range(300)]

    assert len({host.id for host in hosts}) == len({host.address for host in hosts}) == 300
    assert (hosts[0].address, hosts[299].address) == ("10.0.0.1:9000", "10.0.1.44:9000")
    assert len({host.runtime.rng.random() for host in hosts}) == 300
    assert hosts[0].runtime.unix_now() == EPOCH_S


@simulated
async def test_host_offers_what_a_node_stands_on():
    host: Host = make_network().host()
    peers: PeerCaller = host.peers

    assert host.advertised_addresses == ("10.0.0.1:9000",)
    assert len(host.network_id) == 16
    assert not peers.is_connected(host.identity.node_id)


# What takes how long.


@simulated
async def test_session_costs_two_round_trips_once():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    durations = [(await duration(echo(alice, bob)))[0] for _ in range(3)]

    assert durations == [3 * ROUND_TRIP_S, ROUND_TRIP_S, ROUND_TRIP_S]


@simulated
async def test_connecting_takes_two_round_trips_and_nothing_when_connected():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    first, proved = await duration(alice.peers.connect(contact_of(bob)))
    second, _ = await duration(alice.peers.connect(contact_of(bob)))

    assert (first, second) == (2 * ROUND_TRIP_S, 0)
    assert (proved.id, proved.addresses) == (bob.id, (bob.address,))
    assert proved.unix_ms == round((EPOCH_S + 3 * ONE_WAY_S) * 1000)
    assert proved.seen == "10.0.0.1:40000"


@simulated
async def test_peer_that_was_dialed_calls_back_over_the_same_session():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)

    took_s, answer = await duration(echo(bob, alice))

    assert took_s == ROUND_TRIP_S
    assert answer["peer"] == bob.id


@simulated
async def test_client_cannot_be_dialed_but_called_back():
    network = make_network()
    client, bob = network.client(), make_host(network)
    client.mount("_dht.", {"_dht.echo": lambda request, context: {"from": context.address}})
    with pytest.raises(PeerUnavailable, match="no address"):
        await echo(bob, client)
    await echo(client, bob)

    answer = await echo(bob, client)

    assert answer == {"from": bob.address}
    assert client.advertised_addresses == ()


@simulated
async def test_all_who_ask_at_once_share_one_dial():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    results = await asyncio.gather(*(duration(echo(alice, bob)) for _ in range(5)))

    assert {took_s for took_s, _ in results} == {3 * ROUND_TRIP_S}
    assert network.digest.message_count == 5 + 2 * 5  # the dial with its confirm, and five calls


@simulated
async def test_being_cancelled_leaves_the_dial_to_others():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    first = asyncio.create_task(echo(alice, bob))
    second = asyncio.create_task(duration(echo(alice, bob)))
    await asyncio.sleep(ONE_WAY_S)

    first.cancel()
    await asyncio.wait([first])

    assert (await second)[0] == 3 * ROUND_TRIP_S


@simulated
async def test_crossing_dials_end_in_one_session_that_both_ends_agree_on():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    await asyncio.gather(echo(alice, bob), echo(bob, alice))
    await asyncio.sleep(ONE_WAY_S)
    both = await asyncio.gather(duration(echo(alice, bob)), duration(echo(bob, alice)))

    assert [took_s for took_s, _ in both] == [ROUND_TRIP_S, ROUND_TRIP_S]
    ours, theirs = alice.peers._sessions[bob.id], bob.peers._sessions[alice.id]
    assert ours.other is theirs
    assert ours.is_dialer == (alice.id < bob.id)


@simulated
async def test_duplicate_session_is_retired_at_both_ends_when_its_calls_have_ended():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    opened = []
    network.digest.add_message = lambda at_us, source, target, endpoint, body: opened.append((endpoint, source))

    first = await asyncio.gather(duration(echo(alice, bob)), duration(echo(bob, alice)))
    await asyncio.sleep(1)

    smaller, larger = sorted((alice, bob), key=lambda host: host.id)
    assert [took_s for took_s, _ in first] == [3 * ROUND_TRIP_S, 3 * ROUND_TRIP_S]
    assert [source for endpoint, source in opened if endpoint == "goodbye"] == [larger.id]
    assert not alice.peers._aside
    assert not bob.peers._aside
    assert smaller.peers._sessions[larger.id].is_dialer


@simulated
async def test_call_over_a_duplicate_that_its_dialer_retires_is_made_again_over_the_other():
    network = make_network()
    smaller, larger = sorted((make_host(network), make_host(network)), key=lambda host: host.id)
    await asyncio.gather(smaller.peers.connect(contact_of(larger)), larger.peers.connect(contact_of(smaller)))
    busy = asyncio.create_task(duration(echo(larger, smaller)))  # over the one that it dialed and will retire
    await asyncio.sleep(ONE_WAY_S)

    took_s, answer = await duration(echo(smaller, larger))

    assert answer["text"] == "hello"
    assert took_s == 2 * ROUND_TRIP_S
    assert (await busy)[0] == ROUND_TRIP_S
    assert smaller.peers._sessions[larger.id].is_dialer


@simulated
async def test_call_that_reaches_a_retiring_session_is_refused_and_made_again():
    network = make_network()
    smaller, larger = sorted((make_host(network), make_host(network)), key=lambda host: host.id)
    await asyncio.gather(smaller.peers.connect(contact_of(larger)), larger.peers.connect(contact_of(smaller)))
    first = asyncio.create_task(duration(echo(larger, smaller)))
    await asyncio.sleep(ONE_WAY_S)  # the duplicate is open at both ends now, and retiring where a call waits
    second = asyncio.create_task(duration(echo(larger, smaller)))
    network.links.limit_upload(smaller.id, 500)  # so that the answer takes longer than the call that is refused

    took_s, answer = await duration(echo(smaller, larger))

    assert answer["text"] == "hello"
    assert took_s > 2 * ROUND_TRIP_S
    for call in (first, second):
        assert (await call)[1]["text"] == "hello"


@simulated
async def test_session_with_a_peer_that_restarted_makes_room_for_the_new_one():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)
    bob.restart()
    mount_echo(bob)

    await echo(bob, alice)

    assert not alice.peers._aside
    assert (await duration(echo(alice, bob)))[0] == ROUND_TRIP_S


@simulated
async def test_limits_are_kept_as_the_policy_of_the_real_pool_says():
    network = make_network(max_idle_sessions=3, max_sessions=6, reserved_sessions=2)
    hosts = [make_host(network) for _ in range(12)]
    checked = 0

    def watch(pool):
        enforce = pool._enforce_limits

        def check():
            nonlocal checked
            before = [*pool._sessions.values(), *pool._aside]
            expected = sessions_to_close(pool._uses(), pool._limits)
            enforce()
            assert [session for session in before if not session.is_open] == [
                session for session in before if session in expected
            ]
            checked += bool(expected)

        pool._enforce_limits = check

    for host in hosts:
        watch(host.peers)

    async def talk(host):
        for _ in range(20):
            others = host.runtime.rng.sample([peer for peer in hosts if peer is not host], 4)
            await asyncio.gather(*(duration(echo(host, other)) for other in others))
            await asyncio.sleep(host.runtime.rng.random())

    await asyncio.gather(*(talk(host) for host in hosts))

    assert checked > 100


@simulated
async def test_host_with_all_its_places_in_use_refuses_a_session():
    network = make_network(max_sessions=2, reserved_sessions=1)
    alice, bob, carol = (make_host(network) for _ in range(3))
    await echo(bob, alice)
    bob.fall_silent()
    waiting = asyncio.create_task(duration(echo(alice, bob, timeout_s=5.0)))
    await asyncio.sleep(0.1)

    took_s, error = await duration(echo(carol, alice))
    await waiting

    assert took_s == 2 * ROUND_TRIP_S
    assert isinstance(error, PeerUnavailable)
    assert "busy" in str(error)
    assert (await duration(echo(carol, alice, timeout_s=9.0)))[1]["text"] == "hello"


@simulated
async def test_messages_of_a_session_do_not_overtake_each_other():
    network = make_network(latency=JitteryLatency(3))
    alice, bob = make_host(network), network.host()
    seen = []
    bob.mount("_dht.", {"_dht.note": lambda request, context: seen.append(request["number"])})

    def note(number):
        return alice.peers.call(contact_of(bob), "_dht.note", {"number": number}, timeout_s=PLENTY_S)

    await asyncio.gather(*(note(number) for number in range(50)))

    assert seen == list(range(50))


@simulated
async def test_least_recently_used_idle_session_goes_first_and_is_dialed_again():
    network = make_network(max_idle_sessions=3)
    alice, *others = (make_host(network) for _ in range(5))
    for other in others[:3]:
        await echo(alice, other)
    await echo(alice, others[0])  # used again, so the second is the oldest now

    await echo(alice, others[3])
    await asyncio.sleep(2 * SETTLE_S)

    assert alice.peers.peer_ids() == [others[2].id, others[0].id, others[3].id]
    assert not others[1].peers.is_connected(alice.id)
    assert (await duration(echo(others[1], alice)))[0] == 3 * ROUND_TRIP_S


@simulated
async def test_call_that_meets_a_goodbye_is_made_again_over_a_new_session():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)

    bob.peers.say_goodbye()
    took_s, answer = await duration(echo(alice, bob))

    assert answer["text"] == "hello"
    assert took_s == round(ONE_WAY_S + 3 * ROUND_TRIP_S, 6)


@simulated
async def test_closed_session_takes_no_call():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)
    session = alice.peers._sessions[bob.id]
    alice.peers.say_goodbye()

    took_s, error = await duration(session.call("_dht.echo", {}, PLENTY_S))

    assert took_s == 0
    assert isinstance(error, PeerUnavailable)
    assert not error.may_have_started


# Check dials and bare addresses.


@simulated
async def test_check_dial_takes_three_round_trips_and_leaves_no_session():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    took_s, result = await duration(alice.peers.check_dial(contact_of(bob)))
    await asyncio.sleep(1)

    assert (took_s, result) == (3 * ROUND_TRIP_S, None)
    assert not alice.peers.is_connected(bob.id)
    assert not bob.peers.is_connected(alice.id)


@simulated
async def test_check_dial_leaves_an_open_session_alone():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(bob, alice)

    await alice.peers.check_dial(contact_of(bob))
    await asyncio.sleep(1)

    assert (await duration(echo(alice, bob)))[0] == ROUND_TRIP_S
    assert (await duration(echo(bob, alice)))[0] == ROUND_TRIP_S


@simulated
async def test_check_dial_of_another_id_at_the_address_fails():
    network = make_network()
    alice, bob, carol = (make_host(network) for _ in range(3))

    with pytest.raises(HandshakeFailed) as caught:
        await alice.peers.check_dial(Contact(carol.id, (bob.address,)))

    assert caught.value.reason == "identity"


@simulated
async def test_seed_is_known_by_its_address_alone():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    proved = await alice.peers.connect_address(bob.address)

    assert proved.id == bob.id
    assert alice.peers.is_connected(bob.id)


@simulated
async def test_own_address_is_refused():
    alice = make_host(make_network())

    with pytest.raises(HandshakeFailed) as caught:
        await alice.peers.connect_address(alice.address)

    assert caught.value.reason == "self"


@simulated
async def test_host_of_another_network_is_refused():
    network = make_network()
    alice, bob = make_host(network, "red"), make_host(network, "blue")

    with pytest.raises(HandshakeFailed) as caught:
        await alice.peers.connect_address(bob.address)

    assert caught.value.refusal == "network"


@simulated
async def test_contact_with_a_wrong_address_is_reached_at_its_next_one():
    network = make_network()
    alice, bob, carol = (make_host(network) for _ in range(3))

    answer = await alice.peers.call(Contact(bob.id, (carol.address, bob.address)), "_dht.echo", {}, timeout_s=PLENTY_S)

    assert answer == {"peer": alice.id}


# What fails, and how.


@simulated
async def test_address_that_leads_nowhere_is_given_up_after_the_dial_timeout():
    network = make_network(dial_timeout_s=2.0)
    alice = make_host(network)

    took_s, error = await duration(
        alice.peers.call(Contact(bytes(32), ("10.9.9.9:9000",)), "_dht.echo", {}, timeout_s=PLENTY_S)
    )

    assert took_s == 2.0
    assert isinstance(error, PeerUnavailable)
    assert not error.may_have_started


@simulated
async def test_call_that_runs_out_of_time_while_dialing_is_a_timeout():
    alice = make_host(make_network(dial_timeout_s=2.0))

    took_s, error = await duration(
        alice.peers.call(Contact(bytes(32), ("10.9.9.9:9000",)), "_dht.echo", {}, timeout_s=0.5)
    )
    await asyncio.sleep(5)

    assert took_s == 0.5
    assert isinstance(error, Timeout)


@simulated
async def test_address_that_failed_rests_and_is_dialed_again_later():
    network = make_network(redial_pause_s=1.0)
    alice, bob = make_host(network), make_host(network)
    bob.crash()
    await duration(echo(alice, bob))

    at_once, error = await duration(echo(alice, bob))
    bob.restart()
    mount_echo(bob)
    await asyncio.sleep(1.0)
    later, answer = await duration(echo(alice, bob))

    assert at_once == 0
    assert isinstance(error, PeerUnavailable)
    assert (later, answer) == (3 * ROUND_TRIP_S, {"text": "hello", "peer": alice.id})


@simulated
async def test_dialing_a_crashed_host_is_refused_after_one_round_trip():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    bob.crash()

    took_s, error = await duration(echo(alice, bob))

    assert took_s == ROUND_TRIP_S
    assert isinstance(error, PeerUnavailable)


@simulated
async def test_session_with_a_crashed_host_is_found_lost_after_one_round_trip():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)
    bob.crash()

    took_s, error = await duration(echo(alice, bob))

    assert took_s == ROUND_TRIP_S
    assert isinstance(error, PeerUnavailable)
    assert error.may_have_started
    assert not alice.peers.is_connected(bob.id)


@simulated
async def test_session_does_not_survive_a_restart():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)
    bob.restart()
    mount_echo(bob)

    lost = await duration(echo(alice, bob))
    again = await duration(echo(alice, bob))

    assert lost[0] == ROUND_TRIP_S
    assert isinstance(lost[1], PeerUnavailable)
    assert again == (3 * ROUND_TRIP_S, {"text": "hello", "peer": alice.id})


@simulated
async def test_silent_host_answers_nothing_until_the_time_is_up():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)
    bob.fall_silent()

    took_s, error = await duration(echo(alice, bob, timeout_s=1.5))

    assert took_s == 1.5
    assert isinstance(error, Timeout)


@simulated
async def test_stopping_host_tells_its_peers():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)

    bob.stop()
    await asyncio.sleep(ONE_WAY_S)

    assert not alice.peers.is_connected(bob.id)
    assert isinstance((await duration(echo(alice, bob)))[1], PeerUnavailable)


@simulated
async def test_calls_of_a_crashed_host_fail_at_once():
    network = make_network()
    alice, bob, carol = (make_host(network) for _ in range(3))
    await echo(alice, bob)
    waiting = [asyncio.create_task(duration(echo(alice, other))) for other in (bob, carol)]
    await asyncio.sleep(0.01)

    alice.crash()

    assert [took_s for took_s, _ in await asyncio.gather(*waiting)] == [0.01, 0.01]
    assert all(isinstance(task.result()[1], PeerUnavailable) for task in waiting)
    assert isinstance((await duration(echo(alice, bob)))[1], PeerUnavailable)


@simulated
async def test_check_dial_of_a_crashed_host_fails_at_once():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    checks = []
    for pause_s in (0.01, 4.5 * ONE_WAY_S):  # while it dials, and while it waits for the ping's answer
        check = asyncio.create_task(duration(alice.peers.check_dial(contact_of(bob))))
        await asyncio.sleep(pause_s)
        alice.crash()
        checks.append((pause_s, await check))
        alice.restart()

    assert [took_s for _, (took_s, _) in checks] == [pause_s for pause_s, _ in checks]
    assert all(isinstance(error, PeerUnavailable) for _, (_, error) in checks)


@simulated
async def test_message_whose_arrival_fails_is_reported_and_the_next_arrives():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    reports, arrived = [], []
    handler = network.loop.get_exception_handler()
    network.loop.set_exception_handler(lambda _, context: reports.append(context))

    def fail(endpoint, body):
        raise KeyError(endpoint)

    network.send(alice, bob, "first", b"", fail)
    network.send(alice, bob, "second", b"", lambda endpoint, body: arrived.append(endpoint))
    await asyncio.sleep(1)
    network.loop.set_exception_handler(handler)

    assert arrived == ["second"]
    assert [type(context["exception"]) for context in reports] == [KeyError]


@simulated
async def test_host_that_stops_during_the_handshake_is_unavailable():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    call = asyncio.create_task(duration(echo(alice, bob)))
    await asyncio.sleep(2.5 * ONE_WAY_S)

    bob.restart()

    assert isinstance((await call)[1], PeerUnavailable)


@pytest.mark.parametrize(
    ("raised", "code", "reason", "message"),
    [
        (InvalidMessageError("no key"), "bad_request", None, "no key"),
        (CallError("out_of_budget", "come again", details={"left": 0}), "failed", "out_of_budget", "come again"),
        (KeyError("secret"), "internal_error", None, "internal error"),
    ],
)
def test_failure_of_a_handler_arrives_as_its_code(raised, code, reason, message):
    async def main():
        network = make_network()
        alice, bob = make_host(network), network.host()

        def fail(request, context):
            raise raised

        bob.mount("_dht.", {"_dht.echo": fail})
        with pytest.raises(RemoteError) as caught:
            await echo(alice, bob)
        return caught.value

    error = run(main())

    assert (error.code, error.reason) == (code, reason)
    assert error.message.startswith(message)
    assert "secret" not in str(error)
    assert error.details == ({"left": 0} if reason else {})


@simulated
async def test_unknown_endpoint_is_not_found():
    network = make_network()
    alice, bob = make_host(network), network.host()

    with pytest.raises(RemoteError) as caught:
        await echo(alice, bob)

    assert caught.value.code == "not_found"


@simulated
async def test_answer_that_is_too_large_or_cannot_travel_is_a_remote_error():
    network = make_network()
    alice, bob = make_host(network), network.host()
    bob.mount("_dht.", {"_dht.big": lambda *_: bytes(65_536), "_dht.odd": lambda *_: object()})

    codes = []
    for endpoint in ("_dht.big", "_dht.odd"):
        with pytest.raises(RemoteError) as caught:
            await alice.peers.call(contact_of(bob), endpoint, {}, timeout_s=PLENTY_S)
        codes.append(caught.value.code)

    assert codes == ["too_large", "internal_error"]


@simulated
async def test_request_that_is_too_large_or_cannot_travel_fails_here():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    for value in (bytes(65_536), object()):
        with pytest.raises(ConfigError, match=r"_dht\.echo cannot be sent"):
            await alice.peers.call(contact_of(bob), "_dht.echo", {"value": value}, timeout_s=PLENTY_S)


@simulated
async def test_message_with_more_elements_than_allowed_ends_the_session():
    network = make_network()
    alice, bob = make_host(network), make_host(network)

    with pytest.raises(PeerUnavailable):
        await alice.peers.call(contact_of(bob), "_dht.echo", {"value": [0] * 10_000}, timeout_s=PLENTY_S)
    await asyncio.sleep(1)

    assert not alice.peers.is_connected(bob.id)
    assert not bob.peers.is_connected(alice.id)


@simulated
async def test_late_answer_is_ignored():
    network = make_network()
    alice, bob = make_host(network), make_host(network)
    await echo(alice, bob)

    with pytest.raises(Timeout):
        await echo(alice, bob, timeout_s=ONE_WAY_S)
    await asyncio.sleep(1)

    assert (await duration(echo(alice, bob)))[0] == ROUND_TRIP_S


@simulated
async def test_endpoints_are_mounted_under_their_prefix_alone():
    host = make_network().host()

    with pytest.raises(ConfigError, match="named in full"):
        host.mount("_dht.", {"echo": lambda request, context: None})

"""What stands between hosts: what it costs a message, to the microsecond, and that all of it is in the digest."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.contact import Contact
from simulations.latency import ConstantLatency
from simulations.links import MAX_RETRANSMIT_S, MAX_STOPPED_S, MESSAGE_OVERHEAD_BYTES, RETRANSMIT_S, LinkQuality, Links
from simulations.network import Digest, Nat, VirtualNetwork
from simulations.virtual_loop import run
from synapse_p2p.exceptions import ConfigError, PeerUnavailable, Timeout

ONE_WAY_S = 0.04
ROUND_TRIP_S = 2 * ONE_WAY_S
PLENTY_S = 30.0
A, B, C, D = (bytes([number]) * 32 for number in range(1, 5))
SECOND_US = 1_000_000


def make_links(rng=None):
    faults = []
    return Links(rng or random.Random(1), lambda node_id, fault: faults.append((node_id, fault))), faults


class Draws:
    """Chance that is known beforehand."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


def delay_us(links, *, size_bytes=0, now_us=0, is_opening=False, source=A):
    return links.delay_us(now_us, source, B, size_bytes, is_opening=is_opening)


# What each link does, by itself.


def test_links_are_perfect_until_somebody_says_otherwise():
    links, faults = make_links()

    assert links.is_perfect
    assert delay_us(links) == 0
    assert faults == []


def test_message_is_late_by_every_pause_before_it_gets_through():
    links, _ = make_links(Draws(0.1, 0.2, 0.49, 0.5))
    links.set_quality(LinkQuality(loss=0.5))

    assert delay_us(links) == 1_400_000  # after 0.2, 0.4 and 0.8 s


def test_opening_message_that_is_lost_is_sent_again_after_a_second():
    links, _ = make_links(Draws(0.1, 0.9))
    links.set_quality(LinkQuality(loss=0.5))

    assert delay_us(links, is_opening=True) == 1 * SECOND_US


def test_pauses_between_tries_double_up_to_their_bound():
    losses = 12
    links, _ = make_links(Draws(*[0.0] * losses, 0.9))
    links.set_quality(LinkQuality(loss=0.5))

    expected_s = sum(min(RETRANSMIT_S * 2**number, MAX_RETRANSMIT_S) for number in range(losses))
    assert delay_us(links) == round(expected_s * SECOND_US)


@given(st.integers(0, 2**32), st.floats(0, 2))
def test_jitter_makes_a_message_late_by_itself_at_most(seed, jitter_s):
    links, _ = make_links(random.Random(seed))
    links.set_quality(LinkQuality(jitter_s=jitter_s))

    assert 0 <= delay_us(links) <= round(jitter_s * SECOND_US)


def test_quality_of_one_direction_goes_before_that_of_all():
    links, _ = make_links(Draws(0.5))
    links.set_quality(LinkQuality(jitter_s=1.0))
    links.set_quality(LinkQuality(), source=A, target=B)

    assert links.delay_us(0, A, B, 0, is_opening=False) == 0
    assert links.delay_us(0, B, A, 0, is_opening=False) == SECOND_US // 2


def test_messages_wait_for_those_before_them_on_a_narrow_line():
    links, _ = make_links()
    links.limit_upload(A, 1000)
    size_bytes = 500 - MESSAGE_OVERHEAD_BYTES

    delays = [delay_us(links, size_bytes=size_bytes) for _ in range(3)]
    later = delay_us(links, size_bytes=size_bytes, now_us=1_400_000)
    much_later = delay_us(links, size_bytes=size_bytes, now_us=60 * SECOND_US)

    assert delays == [500_000, 1_000_000, 1_500_000]
    assert later == 600_000  # 0.1 s until the line is free, and 0.5 s of its own
    assert much_later == 500_000
    assert delay_us(links, size_bytes=size_bytes, source=C) == 0


def test_line_without_its_limit_is_free_again():
    links, _ = make_links()
    links.limit_upload(A, 1)
    delay_us(links, size_bytes=1000)

    links.limit_upload(A, None)

    assert links.is_perfect
    assert delay_us(links) == 0


def brute_force_is_cut(source, target, sources, targets, one_way):
    def leads(one, other):
        return one in sources and (other not in sources if targets is None else other in targets)

    return leads(source, target) or (not one_way and leads(target, source))


groups = st.lists(st.sampled_from([A, B, C, D]), unique=True)


@given(st.lists(st.tuples(groups, st.none() | groups, st.booleans()), max_size=4), st.data())
def test_message_is_stopped_while_any_cut_stops_it(plans, data):
    links, _ = make_links()
    cuts = [links.cut(sources, targets, one_way=one_way) for sources, targets, one_way in plans]
    healed = data.draw(st.lists(st.integers(0, len(plans) - 1), unique=True)) if plans else []
    for index in healed:
        links.heal(cuts[index])
    left = [plan for index, plan in enumerate(plans) if index not in healed]

    for source in (A, B, C, D):
        for target in (A, B, C, D):
            expected = any(brute_force_is_cut(source, target, *plan) for plan in left)
            assert links.is_cut(source, target) == expected
    assert links.is_perfect == (not left)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_stopped_message_is_sent_again_at_the_first_try_that_is_not_before(sent_us, waited_us):
    links, _ = make_links()
    now_us = sent_us + waited_us

    again_us = links.sent_again_us(sent_us, now_us)

    if waited_us > MAX_STOPPED_S * SECOND_US:
        assert again_us is None
        return
    tries_us = [sent_us]
    pause_s = RETRANSMIT_S
    while tries_us[-1] < now_us:
        tries_us.append(tries_us[-1] + round(pause_s * SECOND_US))
        pause_s = min(2 * pause_s, MAX_RETRANSMIT_S)
    assert again_us == tries_us[-1]


def test_every_change_is_told_with_whom_it_concerns():
    links, faults = make_links()

    links.set_quality(LinkQuality(0.1, 0.02))
    links.set_quality(LinkQuality(), source=A, target=B)
    links.limit_upload(A, 1000)
    cut = links.cut([A, B], [C], one_way=True)
    links.heal(cut)
    links.heal(cut)

    everybody = bytes(32)
    assert faults == [
        (everybody, "loss 0.1 jitter 0.02 to all"),
        (A, f"loss 0.0 jitter 0.0 to {B.hex()}"),
        (A, "upload 1000 bytes/s"),
        (A, "cut 1 one way"),
        (B, "cut 1 one way"),
        (C, "cut 1 target"),
        (everybody, "heal 1"),
    ]


@pytest.mark.parametrize("quality", [{"loss": -0.1}, {"loss": 1.0}, {"loss": float("nan")}, {"jitter_s": -1.0}])
def test_quality_that_cannot_be_is_refused(quality):
    with pytest.raises(ConfigError):
        LinkQuality(**quality)


def test_link_with_one_end_and_a_line_without_width_are_refused():
    links, _ = make_links()

    with pytest.raises(ConfigError, match="source and a target"):
        links.set_quality(LinkQuality(), source=A)
    with pytest.raises(ConfigError, match="bytes_per_s"):
        links.limit_upload(A, 0)


# What hosts see of it.


def make_network(count, seed=1):
    loop = asyncio.get_running_loop()
    network = VirtualNetwork(loop, random.Random(seed), ConstantLatency(ONE_WAY_S), Digest())
    hosts = [network.host() for _ in range(count)]
    for host in hosts:
        host.mount("_dht.", {"_dht.echo": lambda request, context: request})
    return network, *hosts


async def echo(host, other, *, timeout_s=PLENTY_S, text="hello"):
    contact = Contact(other.id, other.advertised_addresses)
    return await host.peers.call(contact, "_dht.echo", {"text": text}, timeout_s=timeout_s)


async def duration(awaitable):
    """Virtual seconds until it ended, and what it raised or returned."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    try:
        outcome = await awaitable
    except (PeerUnavailable, Timeout) as error:
        outcome = error
    return round(loop.time() - started_at, 6), outcome


def simulated(test):
    def run_test():
        run(test())

    run_test.__name__ = test.__name__
    return run_test


@simulated
async def test_call_over_a_cut_session_arrives_when_tcp_tries_again_after_the_heal():
    network, alice, bob = make_network(2)
    await echo(alice, bob)
    cut = network.cut([alice])
    call = asyncio.create_task(duration(echo(alice, bob)))
    await asyncio.sleep(1.0)

    network.heal(cut)

    # Tried after 0.2, 0.6 and 1.4 s, of which the last is the first after the heal.
    assert await call == (round(1.4 + ROUND_TRIP_S, 6), {"text": "hello"})


@simulated
async def test_messages_of_a_session_keep_their_order_over_a_heal():
    network, alice, bob = make_network(2)
    await echo(alice, bob)
    seen = []
    bob.mount("_dht.", {"_dht.echo": lambda request, context: seen.append(request["text"])})
    cut = network.cut([alice])
    calls = []
    for number in range(5):
        calls.append(asyncio.create_task(echo(alice, bob, text=str(number))))
        await asyncio.sleep(0.3)
    network.heal(cut)
    calls.append(asyncio.create_task(echo(alice, bob, text="after")))

    await asyncio.gather(*calls)

    assert seen == ["0", "1", "2", "3", "4", "after"]


@simulated
async def test_dial_into_a_cut_runs_out_of_time():
    network, alice, bob = make_network(2)
    network.cut([bob])

    took_s, error = await duration(echo(alice, bob))

    assert took_s == network.config.pool.dial_timeout_s
    assert isinstance(error, PeerUnavailable)


@simulated
async def test_one_way_cut_stops_what_leaves_and_lets_in_what_comes():
    network, alice, bob = make_network(2)
    seen = []
    await echo(alice, bob)
    bob.mount("_dht.", {"_dht.echo": lambda request, context: seen.append(network.loop.time())})
    sent_at = network.loop.time()
    network.cut([bob], one_way=True)

    took_s, error = await duration(echo(alice, bob, timeout_s=1.0))

    assert (took_s, type(error)) == (1.0, Timeout)
    assert seen == [pytest.approx(sent_at + ONE_WAY_S)]


@simulated
async def test_partition_leaves_each_side_to_itself():
    network, *hosts = make_network(4)
    left, right = hosts[:2], hosts[2:]
    network.cut(left)

    within = [(await duration(echo(*side)))[1] for side in (left, right)]
    across = (await duration(echo(left[0], right[0])))[1]

    assert within == [{"text": "hello"}, {"text": "hello"}]
    assert isinstance(across, PeerUnavailable)


@simulated
async def test_cut_between_two_groups_leaves_all_others_alone():
    network, alice, bob, carol = make_network(3)
    network.cut([alice], [bob])

    assert (await duration(echo(alice, carol)))[1] == {"text": "hello"}
    assert (await duration(echo(carol, bob)))[1] == {"text": "hello"}
    assert isinstance((await duration(echo(bob, alice)))[1], PeerUnavailable)


@simulated
async def test_session_that_was_cut_for_too_long_carries_nothing_any_more():
    network, alice, bob = make_network(2)
    await echo(alice, bob)
    cut = network.cut([alice])
    await duration(echo(alice, bob, timeout_s=1.0))
    await asyncio.sleep(MAX_STOPPED_S)

    network.heal(cut)
    over_the_old = await duration(echo(alice, bob, timeout_s=10.0))
    alice.peers.lose_everything()
    over_a_new = await duration(echo(alice, bob))

    assert (over_the_old[0], type(over_the_old[1])) == (10.0, Timeout)
    assert over_a_new[1] == {"text": "hello"}


@simulated
async def test_host_that_lost_its_memory_sends_nothing_again():
    network, alice, bob = make_network(2)
    await echo(alice, bob)
    cut = network.cut([alice])
    call = asyncio.create_task(duration(echo(alice, bob)))
    await asyncio.sleep(0.5)
    alice.fall_silent()
    await call
    before = network.digest.message_count

    alice.restart()
    network.heal(cut)
    await asyncio.sleep(10)

    assert network.digest.message_count == before


@simulated
async def test_calls_get_through_a_lossy_network_late_and_in_order():
    network, alice, bob = make_network(2)
    seen = []
    bob.mount("_dht.", {"_dht.echo": lambda request, context: seen.append(request["text"])})
    await echo(alice, bob, text="first")
    network.links.set_quality(LinkQuality(loss=0.3))

    durations = await asyncio.gather(*(duration(echo(alice, bob, text=str(number))) for number in range(50)))

    assert seen == ["first", *(str(number) for number in range(50))]
    assert max(took_s for took_s, _ in durations) > ROUND_TRIP_S + RETRANSMIT_S
    assert not any(isinstance(outcome, Exception) for _, outcome in durations)


@simulated
async def test_lost_dials_take_a_second_longer_or_fail():
    network, alice, *others = make_network(100)
    network.links.set_quality(LinkQuality(loss=0.3))

    outcomes = await asyncio.gather(*(duration(echo(alice, other)) for other in others))

    failed = [took_s for took_s, outcome in outcomes if isinstance(outcome, Exception)]
    slow = [took_s for took_s, outcome in outcomes if not isinstance(outcome, Exception) and took_s > 1]
    assert failed
    assert slow
    assert min(slow) >= 1 + 3 * ROUND_TRIP_S - 1e-6


@simulated
async def test_narrow_line_makes_a_large_answer_late_and_no_small_one():
    network, alice, bob = make_network(2)
    await echo(alice, bob)
    network.links.limit_upload(alice.id, 10_000)

    small_s, _ = await duration(echo(alice, bob))
    await asyncio.sleep(10)
    large_s, _ = await duration(echo(alice, bob, text="x" * 10_000))

    assert ROUND_TRIP_S < small_s < ROUND_TRIP_S + 0.02
    assert ROUND_TRIP_S + 1.0 < large_s < ROUND_TRIP_S + 1.02


@pytest.mark.parametrize(("nat", "after_s"), [(Nat.REFUSES, ROUND_TRIP_S), (Nat.DROPS, 2.0)])
def test_host_behind_a_router_is_not_dialed_but_dials_and_is_called_back(nat, after_s):
    async def main():
        _, inside, outside = make_network(2)
        inside.put_behind(nat)

        dialed = await duration(echo(outside, inside))
        dials = await duration(echo(inside, outside))
        called_back = await duration(echo(outside, inside))
        return dialed, dials, called_back

    dialed, dials, called_back = run(main())

    assert dialed[0] == after_s
    assert isinstance(dialed[1], PeerUnavailable)
    assert dials == (3 * ROUND_TRIP_S, {"text": "hello"})
    assert called_back == (ROUND_TRIP_S, {"text": "hello"})


async def disturbed_run(seed):
    network, *hosts = make_network(8, seed)
    network.links.set_quality(LinkQuality(loss=0.1, jitter_s=0.05))
    network.links.limit_upload(hosts[0].id, 20_000)
    hosts[1].put_behind(Nat.DROPS)

    async def talk(host):
        for _ in range(10):
            other = host.runtime.rng.choice([peer for peer in hosts if peer is not host])
            await duration(echo(host, other, timeout_s=1.0))
            await asyncio.sleep(host.runtime.rng.random())

    async def cut_and_heal():
        await asyncio.sleep(1.5)
        cut = network.cut(hosts[2:5])
        await asyncio.sleep(3)
        network.heal(cut)

    await asyncio.gather(*(talk(host) for host in hosts), cut_and_heal())
    return network.digest.hexdigest(), network.digest.message_count


def test_disturbed_run_repeats_and_another_seed_is_another_run():
    first, again, other = run(disturbed_run(1)), run(disturbed_run(1)), run(disturbed_run(2))

    assert first == again
    assert first[1] > 200
    assert first[0] != other[0]


@simulated
async def test_faults_are_in_the_digest():
    untouched, cut, limited = (make_network(2)[0] for _ in range(3))

    cut.cut([cut.at("10.0.0.1:9000")])
    limited.at("10.0.0.1:9000").put_behind(Nat.REFUSES)

    assert len({network.digest.hexdigest() for network in (untouched, cut, limited)}) == 3

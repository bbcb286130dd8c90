"""Whom we dial on the word of others: every class of address and every count, with exemptions off where they matter."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dht.config import DialConfig
from dht.contact import Contact
from dht.dial_policy import HEARSAY_S, HOUR_S, MAX_HEARSAY, MAX_INFORMERS, MINUTE_S, DialDecision, DialPolicy, kind_of
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.trust import TrustConfig

NOBODY = TrustConfig(loopback=False, private=False)
OWN = "8.7.6.5:9000"
FAR, NEAR, HERE = "9.9.9.9:9000", "10.9.9.9:9000", "127.0.0.1:9000"
"""Informers: on the internet, in a private network, on this machine."""

DIAL = DialDecision.DIAL


def policy(config: DialConfig | None = None, trust: TrustConfig = NOBODY) -> DialPolicy:
    return DialPolicy(config or DialConfig(), trust, own_addresses=lambda: (OWN,))


def contact(*addresses: str, number: int = 1) -> Contact:
    return Contact(number.to_bytes(32, "big"), addresses)


def heard(rules: DialPolicy, *addresses: str, informer: str = FAR) -> None:
    """The addresses were named, and may be."""
    assert [each.addresses for each in rules.usable([contact(*addresses)], informer, 0.0)] == [addresses]


# Classes of addresses

ALWAYS = (DIAL, DIAL, DIAL)
PRIVATE = (DialDecision.PRIVATE, DIAL, DIAL)
LOOPBACK = (DialDecision.LOOPBACK, DialDecision.LOOPBACK, DIAL)
NEVER = (DialDecision.NEVER,) * 3
RESERVED = (DialDecision.RESERVED,) * 3
NO_LITERAL = (DialDecision.NO_LITERAL,) * 3

CLASSES = [
    # IPv4
    ("8.8.8.8", ALWAYS),
    ("1.0.0.1", ALWAYS),
    ("223.255.255.254", ALWAYS),
    ("100.63.255.255", ALWAYS),
    ("100.128.0.1", ALWAYS),
    ("172.15.255.255", ALWAYS),
    ("172.32.0.0", ALWAYS),
    ("192.0.1.1", ALWAYS),
    ("198.17.255.255", ALWAYS),
    ("198.20.0.0", ALWAYS),
    ("10.0.0.1", PRIVATE),
    ("10.255.255.255", PRIVATE),
    ("172.16.0.1", PRIVATE),
    ("172.31.255.255", PRIVATE),
    ("192.168.1.1", PRIVATE),
    ("100.64.0.1", PRIVATE),
    ("100.127.255.255", PRIVATE),
    ("127.0.0.1", LOOPBACK),
    ("127.255.255.254", LOOPBACK),
    ("0.0.0.0", NEVER),
    ("0.1.2.3", NEVER),
    ("169.254.169.254", NEVER),
    ("224.0.0.1", NEVER),
    ("239.255.255.255", NEVER),
    ("255.255.255.255", NEVER),
    ("192.0.0.8", RESERVED),
    ("192.0.2.1", RESERVED),
    ("198.51.100.7", RESERVED),
    ("203.0.113.9", RESERVED),
    ("192.88.99.1", RESERVED),
    ("198.18.0.1", RESERVED),
    ("198.19.255.255", RESERVED),
    ("240.0.0.1", RESERVED),
    ("255.255.255.254", RESERVED),
    # IPv6
    ("[2a01:4f8::1]", ALWAYS),
    ("[2001:200::1]", ALWAYS),
    ("[2607:f8b0::1]", ALWAYS),
    ("[fc00::1]", PRIVATE),
    ("[fdff:ffff::1]", PRIVATE),
    ("[::1]", LOOPBACK),
    ("[::]", NEVER),
    ("[fe80::1]", NEVER),
    ("[febf::1]", NEVER),
    ("[fec0::1]", NEVER),
    ("[ff02::1]", NEVER),
    ("[ff0e::1]", NEVER),
    ("[2001:db8::1]", RESERVED),
    ("[3fff::1]", RESERVED),
    ("[100::1]", RESERVED),
    ("[4000::1]", RESERVED),
    ("[5f00::1]", RESERVED),
    ("[2001:20::1]", RESERVED),
    # IPv4 inside IPv6: the same as without where it is the same host, and nowhere where a gateway would be between
    ("[::ffff:8.8.8.8]", ALWAYS),
    ("[::ffff:10.0.0.1]", PRIVATE),
    ("[::ffff:a00:1]", PRIVATE),
    ("[::ffff:127.0.0.1]", LOOPBACK),
    ("[::ffff:0.0.0.0]", NEVER),
    ("[::ffff:169.254.169.254]", NEVER),
    ("[::ffff:224.0.0.1]", NEVER),
    ("[::ffff:192.0.2.1]", RESERVED),
    ("[::10.0.0.1]", RESERVED),
    ("[::8.8.8.8]", RESERVED),
    ("[2002:a00:1::1]", RESERVED),
    ("[2002:808:808::1]", RESERVED),
    ("[64:ff9b::10.0.0.1]", RESERVED),
    ("[64:ff9b::8.8.8.8]", RESERVED),
    ("[64:ff9b:1::1]", RESERVED),
    ("[2001:0:a00:1::1]", RESERVED),
    # No literals
    ("localhost", NO_LITERAL),
    ("example.org", NO_LITERAL),
    ("8.8.8", NO_LITERAL),
    ("134744072", NO_LITERAL),
    ("0x8.8.8.8", NO_LITERAL),
    ("8.8.8.08", NO_LITERAL),
    ("2a01:4f8::1", NO_LITERAL),
    ("[fe80::1%eth0]", NO_LITERAL),
    ("[8.8.8.8]", NO_LITERAL),
    ("", NO_LITERAL),
]


@pytest.mark.parametrize(("host", "decisions"), CLASSES, ids=lambda part: part if isinstance(part, str) else "")
@pytest.mark.parametrize("trust", [NOBODY, TrustConfig()], ids=["exempt-none", "exempt-own"])
def test_what_an_address_is_and_who_named_it_decide(
    host: str, decisions: tuple[DialDecision, DialDecision, DialDecision], trust: TrustConfig
):
    rules = policy(trust=trust)

    assert tuple(rules.judge(f"{host}:9000", informer) for informer in (FAR, NEAR, HERE)) == decisions


@pytest.mark.parametrize(("host", "decisions"), CLASSES, ids=lambda part: part if isinstance(part, str) else "")
@pytest.mark.parametrize("trust", [NOBODY, TrustConfig(), TrustConfig.everybody()])
def test_what_is_usable_is_what_may_be_named(
    host: str, decisions: tuple[DialDecision, DialDecision, DialDecision], trust: TrustConfig
):
    rules = policy(trust=trust)
    named = [contact(f"{host}:9000")]

    for informer in (FAR, NEAR, HERE):
        assert bool(rules.usable(named, informer, 0.0)) is rules.judge(f"{host}:9000", informer).is_allowed


@pytest.mark.parametrize("informer", ["", "example.org:9000", "nonsense", "169.254.1.1:9000", "192.0.2.1:9000"])
def test_an_informer_of_whom_nothing_is_known_is_far_away(informer: str):
    rules = policy()

    assert rules.judge("8.8.8.8:9000", informer) is DIAL
    assert rules.judge("10.0.0.1:9000", informer) is DialDecision.PRIVATE
    assert rules.judge("127.0.0.1:9000", informer) is DialDecision.LOOPBACK


@pytest.mark.parametrize("informer", ["172.16.0.1:1", "192.168.7.7:1", "100.64.0.1:1", "[fd00::1]:1"])
def test_any_two_private_addresses_are_in_one_range(informer: str):
    assert policy().judge("10.0.0.1:9000", informer) is DIAL


@given(st.ip_addresses(v=4))
def test_no_public_ipv4_address_is_special_to_the_standard_library(address: ipaddress.IPv4Address):
    kind = kind_of(f"{address}:9000")

    assert kind is not None
    if kind.value == "public":
        assert address.is_global or address in ipaddress.ip_network("192.0.0.0/24")
    if address.is_multicast or address.is_link_local or address.is_unspecified:
        assert kind.value == "never"


@given(st.ip_addresses(v=6))
def test_a_public_ipv6_address_is_global_unicast(address: ipaddress.IPv6Address):
    kind = kind_of(f"[{address}]:9000")

    assert kind is not None
    if kind.value == "public" and not address.ipv4_mapped:
        assert address.is_global
        assert not address.teredo
        assert not address.sixtofour


def test_our_own_address_is_not_dialed():
    rules = policy()

    assert rules.judge(OWN, FAR) is DialDecision.OWN
    assert rules.may_dial(OWN, 0.0) is DialDecision.OWN
    assert rules.usable([contact(OWN)], FAR, 0.0) == []


@pytest.mark.parametrize(("port", "decision"), [(1, "LOW"), (22, "LOW"), (1023, "LOW"), (1024, "ok"), (65_535, "ok")])
def test_low_ports_belong_to_others_unless_configured(port: int, decision: str):
    expected = DialDecision.LOW_PORT if decision == "LOW" else DIAL

    assert policy().judge(f"8.8.8.8:{port}", FAR) is expected
    assert policy(DialConfig(low_ports=(22, 1, 1023))).judge(f"8.8.8.8:{port}", FAR) is DIAL
    assert policy(DialConfig(min_port=1)).judge(f"8.8.8.8:{port}", FAR) is DIAL


@pytest.mark.parametrize("port", ["0", "65536", "-1", "", "http", "٩٠٠٠"])
def test_what_is_no_port_is_no_address(port: str):
    assert policy().judge(f"8.8.8.8:{port}", FAR) is DialDecision.NO_LITERAL


def test_a_laboratory_says_which_reserved_network_it_uses_and_nothing_else_is_lifted_by_that():
    rules = policy(trust=TrustConfig(networks=("198.18.0.0/15", "224.0.0.0/4", "10.0.0.0/8")))

    assert rules.judge("198.18.0.1:9000", FAR) is DIAL
    assert rules.judge("203.0.113.1:9000", FAR) is DialDecision.RESERVED
    assert rules.judge("224.0.0.1:9000", FAR) is DialDecision.NEVER
    assert rules.judge("10.0.0.1:9000", FAR) is DialDecision.PRIVATE


# What is left of an answer


def test_of_a_contact_the_addresses_are_left_that_may_be_named_and_one_without_any_is_dropped():
    mixed = contact("8.8.8.8:9000", "10.0.0.1:9000", "8.8.4.4:22", "[2a01:4f8::1]:9000", number=1)
    bad = contact("169.254.169.254:80", "127.0.0.1:9000", number=2)
    nowhere = contact(number=3)

    usable = policy().usable([mixed, bad, nowhere], FAR, 0.0)

    assert usable == [contact("8.8.8.8:9000", "[2a01:4f8::1]:9000", number=1)]


def test_an_answer_of_neighbours_alone_is_handed_on_as_it_is():
    named = tuple(contact(f"10.0.0.{number}:9000", number=number) for number in range(20))

    assert policy(trust=TrustConfig()).usable(named, NEAR, 0.0) is named


def test_at_most_four_addresses_of_a_contact_and_twenty_of_an_exchange_are_taken():
    addresses = [f"8.8.{number}.8:9000" for number in range(6)]
    contacts = [contact(*(f"8.{number}.{host}.1:9000" for host in range(4)), number=number) for number in range(20)]

    (first,) = policy().usable([contact(*addresses)], FAR, 0.0)
    exchanged = policy().usable(contacts, FAR, 0.0, max_addresses=20)

    assert first.addresses == tuple(addresses[:4])
    assert sum(len(each.addresses) for each in exchanged) == 20
    assert exchanged == contacts[:5]


# How many


def test_an_informer_makes_us_dial_twenty_at_once_and_then_one_a_second():
    rules = policy(DialConfig(max_dials_per_minute=200))
    addresses = [f"8.8.{number}.8:9000" for number in range(60)]
    for address in addresses:
        heard(rules, address)

    at_once = [rules.may_dial(address, 0.0) for address in addresses[:25]]
    later = [rules.may_dial(address, 3.0) for address in addresses[25:35]]

    assert at_once == [DIAL] * 20 + [DialDecision.TOO_MANY_OF_INFORMER] * 5
    assert later == [DIAL] * 3 + [DialDecision.TOO_MANY_OF_INFORMER] * 7


def test_an_informer_on_many_ports_is_one_informer():
    rules = policy()
    for number in range(30):
        heard(rules, f"8.8.{number}.8:9000", informer=f"9.9.9.9:{1000 + number}")

    allowed = sum(rules.may_dial(f"8.8.{number}.8:9000", 0.0).is_allowed for number in range(30))

    assert allowed == 20


def test_whoever_uses_up_his_dials_does_not_keep_us_from_what_others_name_too():
    rules = policy()
    for informer in ("66.6.6.1:9", "66.6.6.2:9", "66.6.6.3:9", "66.6.6.4:9", "66.6.6.5:9"):
        heard(rules, "8.8.8.8:9000", informer=informer)
    for number in range(20):
        heard(rules, f"66.7.{number}.1:9000", informer="66.6.6.1:9")
        rules.may_dial(f"66.7.{number}.1:9000", 0.0)
    heard(rules, "8.8.8.8:9000", informer=FAR)

    assert rules.may_dial("8.8.8.8:9000", 0.0) is DIAL


def test_one_host_gets_three_dials_an_hour_that_it_did_not_answer_whatever_ports_are_named():
    rules = policy()
    addresses = [f"8.8.8.8:{9000 + number}" for number in range(6)]
    heard(rules, *addresses[:4])
    heard(rules, *addresses[4:])

    decisions = [rules.may_dial(address, 10.0 * number) for number, address in enumerate(addresses)]

    assert decisions == [DIAL] * 3 + [DialDecision.TOO_MANY_OF_HOST] * 3
    assert rules.may_dial(addresses[0], HOUR_S - 1) is DialDecision.TOO_MANY_OF_HOST
    assert rules.may_dial(addresses[0], HOUR_S) is DIAL


def test_in_ipv6_a_host_is_its_64():
    rules = policy()

    decisions = [rules.may_dial(f"[2a01:4f8:1:2::{number}]:9000", 0.0) for number in range(1, 5)]

    assert decisions == [DIAL] * 3 + [DialDecision.TOO_MANY_OF_HOST]
    assert rules.may_dial("[2a01:4f8:1:3::1]:9000", 0.0) is DIAL


def test_sixty_strangers_a_minute_are_dialed_in_all():
    rules = policy()
    addresses = [f"8.{number}.8.8:9000" for number in range(100)]
    for number, address in enumerate(addresses):
        heard(rules, address, informer=f"9.9.{number}.9:9000")

    decisions = [rules.may_dial(address, 0.0) for address in addresses]

    assert decisions == [DIAL] * 60 + [DialDecision.TOO_MANY] * 40
    assert rules.may_dial(addresses[99], 59.9) is DialDecision.TOO_MANY
    assert rules.may_dial(addresses[99], 60.0) is DIAL


def test_an_informer_has_half_of_the_dials_that_are_left_of_a_minute():
    rules = policy(DialConfig(max_dials_per_informer=1000))
    addresses = [f"8.8.{number}.8:9000" for number in range(60)]
    for address in addresses:
        heard(rules, address)

    first = [rules.may_dial(address, 0.0) for address in addresses]
    later = [rules.may_dial(address, 59.9) for address in addresses]
    anew = [rules.may_dial(address, 60.0) for address in addresses]

    assert first == anew == [DIAL] * 20 + [DialDecision.TOO_MANY_OF_INFORMER] * 40
    assert set(later) == {DialDecision.TOO_MANY_OF_INFORMER}


def test_however_much_ten_liars_name_one_who_never_misled_us_is_believed():
    rules = policy()
    for number in range(20):
        for liar in range(10):
            heard(rules, f"66.{liar}.{number}.1:9000", informer=f"66.6.{liar}.6:9000")
            rules.may_dial(f"66.{liar}.{number}.1:9000", 0.0)

    for number in range(100):
        heard(rules, f"8.8.{number}.8:9000")
        assert rules.may_dial(f"8.8.{number}.8:9000", 1.0) is DIAL
        rules.on_proved(f"8.8.{number}.8:9000")


def test_a_dial_that_is_answered_costs_nothing():
    rules = policy(DialConfig(max_dials_per_informer=2, max_dials_per_host=1, max_dials_per_minute=2))
    heard(rules, "8.8.8.8:9000")

    for _ in range(50):
        assert rules.may_dial("8.8.8.8:9000", 0.0) is DIAL
        rules.on_proved("8.8.8.8:9000")
        rules.check_invariants()


def test_who_was_proved_without_being_counted_gives_nothing_back():
    rules = policy(DialConfig(max_dials_per_host=1))
    assert rules.may_dial("8.8.8.8:9000", 0.0) is DIAL

    rules.on_proved("8.8.8.8:9001")
    rules.on_proved("10.0.0.1:9000")

    assert rules.may_dial("8.8.8.8:9001", 0.0) is DialDecision.TOO_MANY_OF_HOST


@pytest.mark.parametrize(
    ("trust", "host"),
    [(TrustConfig(), "10.0.0.1"), (TrustConfig(), "127.0.0.1"), (TrustConfig.everybody(), "8.8.8.8")],
)
def test_exempt_hosts_are_not_counted(trust: TrustConfig, host: str):
    rules = policy(trust=trust)

    assert {rules.may_dial(f"{host}:{1024 + number}", 0.0) for number in range(500)} == {DIAL}


def test_ten_thousand_addresses_of_victims_cost_each_three_dials_and_all_sixty_a_minute():
    rules = policy()
    for number in range(10_000):
        rules.usable([contact(f"8.{number // 250 % 250}.{number % 250}.1:{1024 + number}")], FAR, 0.0)
    victims = [f"8.8.8.8:{1024 + number}" for number in range(200)]
    for address in victims:
        rules.usable([contact(address)], FAR, 0.0)

    dials: list[tuple[float, str]] = []
    for second in range(600):
        for number in range(3):
            address = f"8.{(second + number) % 40}.{second % 250}.1:{1024 + second}"
            for each in (address, victims[second % 200]):
                if rules.may_dial(each, float(second)).is_allowed:
                    dials.append((float(second), each.rpartition(":")[0]))
        rules.check_invariants()

    hosts = [host for _, host in dials]
    assert max(map(hosts.count, set(hosts))) <= 3
    assert all(sum(start <= at < start + 60 for at, _ in dials) <= 60 for start in range(0, 600, 7))


@pytest.mark.parametrize("decision", DialDecision)
def test_a_refusal_that_a_setting_lifts_names_it(decision: DialDecision):
    has_limit = decision.name.startswith("TOO_MANY") or decision in (DialDecision.LOW_PORT, DialDecision.RESERVED)

    assert bool(decision.lifted_by) is has_limit
    assert decision.value


@pytest.mark.parametrize("ports", [(0,), (1024,), (22, 70_000)])
def test_low_ports_are_low(ports: tuple[int, ...]):
    with pytest.raises(ConfigError, match="low_ports"):
        DialConfig(low_ports=ports)


def test_what_strangers_can_make_us_remember_is_bounded():
    rules = policy()

    for number in range(MAX_HEARSAY + 100):
        informer = f"9.{number // 250 % 250}.{number % 250}.9:9000"
        address = f"8.{number // 250 % 250}.{number % 250}.8:9000"
        rules.usable([contact(address)], informer, number / 1000)
        rules.may_dial(address, number / 1000)
    rules.check_invariants()

    assert MAX_INFORMERS < MAX_HEARSAY


def test_who_named_an_address_is_remembered_for_minutes_after_the_last_time():
    def is_his_at(minutes: int, *named_at: int) -> bool:
        """Whether an address that FAR named then counts as his, who may make us dial no more."""
        rules = policy(DialConfig(max_dials_per_minute=1000, informer_dials_per_s=1e-6))
        for minute in range(minutes + 1):
            rules.usable([contact("9.8.7.6:9000")], NEAR, minute * MINUTE_S)
            if minute in named_at:
                rules.usable([contact("8.8.8.8:9000")], FAR, minute * MINUTE_S)
        spent = [f"7.7.{number}.7:9000" for number in range(20)]
        for address in spent:
            rules.usable([contact(address)], FAR, minutes * MINUTE_S)
            assert rules.may_dial(address, minutes * MINUTE_S).is_allowed
        rules.check_invariants()
        return rules.may_dial("8.8.8.8:9000", minutes * MINUTE_S) is DialDecision.TOO_MANY_OF_INFORMER

    kept = int(HEARSAY_S / MINUTE_S)
    for start in range(2 * kept):
        assert is_his_at(start + kept, start)
        assert is_his_at(start + 2 * kept, start, start + kept)
        assert not is_his_at(start + 2 * kept, start)


class DialModel(RuleBasedStateMachine):
    """The counts against a list of all dials that were ever let through."""

    HOSTS = ("8.1.1.1", "8.1.1.2", "8.2.2.2")
    INFORMERS = ("9.1.1.1:9000", "9.2.2.2:9000")

    def __init__(self) -> None:
        super().__init__()
        self.config = DialConfig(
            max_dials_per_informer=4, informer_dials_per_s=0.5, max_dials_per_host=3, max_dials_per_minute=5
        )
        self.rules = policy(self.config)
        self.now = 0.0
        self.named: dict[str, list[str]] = {}
        self.dials: list[tuple[float, str, str]] = []
        self.payers: list[str] = []  # of those dials
        self.left = dict.fromkeys((*self.INFORMERS, ""), 4.0)

    @rule(seconds=st.sampled_from([0.5, 1.0, 7.0, 61.0, 1800.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.left = {informer: min(4.0, left + seconds / 2) for informer, left in self.left.items()}

    @rule(host=st.sampled_from(HOSTS), port=st.integers(9000, 9002), informer=st.sampled_from(INFORMERS))
    def hear(self, host: str, port: int, informer: str) -> None:
        heard(self.rules, f"{host}:{port}", informer=informer)
        informers = self.named.setdefault(f"{host}:{port}", [])
        if informer not in informers:
            informers.append(informer)

    @rule(host=st.sampled_from(HOSTS), port=st.integers(9000, 9002), answers=st.booleans())
    def dial(self, host: str, port: int, answers: bool) -> None:
        address = f"{host}:{port}"
        lately = [payer for (at, _, _), payer in zip(self.dials, self.payers, strict=True) if at > self.now - 60]
        payers = [each for each in self.named.get(address, [""]) if 2 * lately.count(each) < 5 - len(lately)]
        payer = next((each for each in payers if self.left[each] >= 1), None)
        if len(lately) >= 5:
            expected = DialDecision.TOO_MANY
        elif sum(at > self.now - HOUR_S and of == host for at, of, _ in self.dials) >= 3:
            expected = DialDecision.TOO_MANY_OF_HOST
        elif payer is None:
            expected = DialDecision.TOO_MANY_OF_INFORMER
        else:
            expected = DIAL
            assert payer is not None
            self.dials.append((self.now, host, address))
            self.payers.append(payer)
            self.left[payer] -= 1

        assert self.rules.may_dial(address, self.now) is expected
        if payer is not None and expected is DIAL and answers:
            self.rules.on_proved(address)
            self.dials.pop()
            self.payers.pop()
            self.left[payer] += 1

    @invariant()
    def keeps_its_bounds(self) -> None:
        self.rules.check_invariants()


TestDialModel = DialModel.TestCase
TestDialModel.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)

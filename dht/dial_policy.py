"""Whom we dial on the word of others: which addresses at all, and how many.

Pure. An address that a peer names is a wish of that peer: to have us knock at a third party's door, at a printer in our
own network, or at ourselves. What an address has to be is decided when it is heard, by who named it; how many dials
that is worth, when it is about to be dialed. Seeds, remembered peers and addresses that a dial of ours proved are
nobody's hearsay and not asked about here.

The counts protect strangers. A dial whose handshake succeeds was welcome and is not counted; neither are hosts that
`TrustConfig` exempts.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import takewhile
from operator import attrgetter
from typing import NamedTuple

from dht.config import DialConfig
from dht.contact import MAX_ADDRESSES, MAX_SHARED, Contact, shared_contact
from dht.memo import remembered
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.transport.base import is_literal_address, parse_address
from synapse_p2p.trust import TrustConfig, is_private, machine_of

MINUTE_S, HOUR_S = 60.0, 3600.0
HEARSAY_S = 300.0
"""How long at least it is remembered who named an address, twice that at most: it is dialed within seconds, or not."""
MAX_HEARSAY = 4096
"""Addresses of which that is remembered; past it the older half goes, and counts as named by nobody known."""
MAX_INFORMERS_REMEMBERED = 4
"""Of one address: whoever uses up his dials does not keep us from an address that others name too."""
MAX_INFORMERS = 1024
"""Informers whose dials are counted; past it the one that made us dial longest ago is forgotten."""

MAX_PART_OF_LEFT = 0.5
"""Of the dials that are left of a minute's: an informer whose dials have not succeeded holds no more of them. One alone
may have 20 of 60, each of ten who lie all the time 5, and one who never misled us is believed until the last is spent.
Without it three liars spend them all, and we reach no stranger for a minute, whoever names him."""

NOBODY = ""
"""The informer of an address of which we forgot who named it: one party with all of those."""


class DialDecision(Enum):
    """Whether an address is dialed, and why not."""

    DIAL = "dialed"
    NO_LITERAL = "no IP literal with a port: host names come from local configuration alone"
    OWN = "our own address"
    NEVER = "an address that is nobody's: unspecified, multicast, broadcast or link-local"
    RESERVED = "an address that no host on the internet has: documentation, benchmark, translation or not assigned"
    LOOPBACK = "a loopback address named by a peer that is not on this machine"
    PRIVATE = "a private address named by a peer outside the private networks"
    LOW_PORT = "a port that services of other kinds use"
    TOO_MANY_OF_HOST = "that host did not answer several dials in the last hour"
    TOO_MANY_OF_INFORMER = "who named it made us dial much lately"
    TOO_MANY = "we dialed many strangers in the last minute"

    @property
    def is_allowed(self) -> bool:
        """Whether it is dialed."""
        return self is DialDecision.DIAL

    @property
    def lifted_by(self) -> str:
        """The settings under which it would be dialed; empty where none helps."""
        return _LIFTED_BY.get(self, "")


_DIAL = DialDecision.DIAL  # in Python 3.11 finding a member takes longer than all else that is done with an address
_LIFTED_BY = {
    DialDecision.RESERVED: "TrustConfig.networks",
    DialDecision.LOW_PORT: "DialConfig.min_port or DialConfig.low_ports",
    DialDecision.TOO_MANY_OF_HOST: "DialConfig.max_dials_per_host, or the network in TrustConfig.networks",
    DialDecision.TOO_MANY_OF_INFORMER: (
        "DialConfig.max_dials_per_informer or DialConfig.max_dials_per_minute, or the network in TrustConfig.networks"
    ),
    DialDecision.TOO_MANY: "DialConfig.max_dials_per_minute, or the network in TrustConfig.networks",
}


class AddressKind(Enum):
    """What an IP literal is, to those who might dial it. One that embeds IPv4 as ::ffff:a.b.c.d is what that is."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    RESERVED = "reserved"
    NEVER = "never"


_FAR_KINDS = {
    AddressKind.PUBLIC: DialDecision.DIAL,
    AddressKind.PRIVATE: DialDecision.PRIVATE,
    AddressKind.LOOPBACK: DialDecision.LOOPBACK,
    AddressKind.RESERVED: DialDecision.RESERVED,
    AddressKind.NEVER: DialDecision.NEVER,
}
_DECISIONS = {
    # Who is on this machine may name its networks; who is in one of those knows nothing of this machine's inside.
    AddressKind.LOOPBACK: _FAR_KINDS
    | {AddressKind.PRIVATE: DialDecision.DIAL, AddressKind.LOOPBACK: DialDecision.DIAL},
    AddressKind.PRIVATE: _FAR_KINDS | {AddressKind.PRIVATE: DialDecision.DIAL},
}
"""By the informer's kind, then the address's; of other informers it is `_FAR_KINDS`."""

_NEVER = (
    "0.0.0.0/8",  # RFC 1122, this network
    "169.254.0.0/16",  # RFC 3927, link-local
    "224.0.0.0/4",  # RFC 5771, multicast
    "255.255.255.255/32",  # RFC 919, broadcast
    "::/128",
    "fe80::/10",  # RFC 4291, link-local
    "fec0::/10",  # RFC 3879, its predecessor
    "ff00::/8",  # RFC 4291, multicast
)
_RESERVED = (
    "192.0.0.0/24",  # RFC 6890, protocol assignments
    "192.0.2.0/24",  # RFC 5737, documentation, as the two that follow
    "198.51.100.0/24",
    "203.0.113.0/24",
    "192.88.99.0/24",  # RFC 7526, relays of 6to4
    "198.18.0.0/15",  # RFC 2544, benchmarks
    "240.0.0.0/4",  # RFC 1112
    "2001::/23",  # RFC 2928: Teredo, ORCHID; what embeds an IPv4 address leads past the rules for IPv4
    "2001:db8::/32",  # RFC 3849, documentation
    "2002::/16",  # RFC 3056, 6to4
    "3fff::/20",  # RFC 9637, documentation
)
_NEVER_NETWORKS, _RESERVED_NETWORKS = (tuple(map(ipaddress.ip_network, each)) for each in (_NEVER, _RESERVED))
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
"""All that is assigned to hosts; NAT64 (64:ff9b::/96, 64:ff9b:1::/48) and IPv4-compatible addresses are outside."""

_addresses_of = attrgetter("addresses")


@dataclass(slots=True)
class _Dial:
    """One that was let through and has not succeeded."""

    address: str
    host: str
    informer: str
    at: float


@dataclass(slots=True)
class _Bucket:
    """What an informer may still make us dial, as of a moment."""

    left: float
    at: float


class DialPolicy:
    """The rules of one node. `own_addresses` tells where others dial us."""

    def __init__(self, config: DialConfig, trust: TrustConfig, *, own_addresses: Callable[[], Sequence[str]]) -> None:
        self._config = config
        self._trust = trust
        self._own_addresses = own_addresses
        self._rules: dict[AddressKind | None, _Rules] = {}  # by the informer's kind
        self._hearsay: dict[str, tuple[str, ...]] = {}  # by address: who named it
        self._older_hearsay: dict[str, tuple[str, ...]] = {}  # what nobody named since
        self._hearsay_since = 0.0
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # by informer
        self._dials: deque[_Dial] = deque()  # of the last hour, oldest first
        self._dials_of_host: dict[str, int] = {}  # among those

    def judge(self, address: str, informer: str) -> DialDecision:
        """Whether a peer at `informer` may name this address at all; both are `host:port`, counts are left aside."""
        if address in self._own_addresses():
            return DialDecision.OWN
        return self._rules_for(informer).judge(address)[0]

    def usable(
        self, contacts: Sequence[Contact], informer: str, now: float, *, max_addresses: int | None = None
    ) -> Sequence[Contact]:
        """Contacts as a peer at `informer` named them, less the addresses that it may not name, and those without any.

        With `max_addresses` no more of these are taken in all. Who named what is remembered for `may_dial`.
        Cost, for twenty contacts: 2 us where all are at exempt addresses, about 20 us where not.
        """
        rules = self._rules_for(informer)
        if max_addresses is None and all(map(rules.is_free, map(_addresses_of, contacts))):
            return contacts  # most answers, where all are neighbours
        if now - self._hearsay_since >= HEARSAY_S:
            self._age_hearsay(now)
        own_addresses, machine = frozenset(self._own_addresses()), _machine_at(informer)
        left = len(contacts) * MAX_ADDRESSES if max_addresses is None else max_addresses
        usable: list[Contact] = []
        for contact in contacts:
            counted = rules.counted_of(contact.addresses) if max_addresses is None else None
            if counted is not None and own_addresses.isdisjoint(contact.addresses):
                for address in counted:
                    self._remember(address, machine, now)
                usable.append(contact)
                continue
            addresses: list[str] = []
            for address in contact.addresses[: min(left, MAX_ADDRESSES)]:
                decision, is_counted = rules.judge(address)
                if decision is _DIAL and address not in own_addresses:
                    addresses.append(address)
                    if is_counted:
                        self._remember(address, machine, now)
            left -= len(addresses)
            if len(addresses) == len(contact.addresses) > 0:
                usable.append(contact)
            elif addresses:
                usable.append(shared_contact(contact.id, tuple(addresses)))
        return usable

    def may_dial(self, address: str, now: float) -> DialDecision:
        """Whether this address, which `usable` let through, is dialed now. A yes is counted.

        Every dial that was let through and succeeded is to be told of: `on_proved`.
        """
        if address in self._own_addresses():
            return DialDecision.OWN
        host = self._rules_for(NOBODY).counted_host(address)
        if host is None:
            return DialDecision.DIAL
        config = self._config
        self._forget(now - HOUR_S)
        lately = self._informers_since(now - MINUTE_S)
        left = config.max_dials_per_minute - len(lately)
        if left <= 0:
            return DialDecision.TOO_MANY
        if self._dials_of_host.get(host, 0) >= config.max_dials_per_host:
            return DialDecision.TOO_MANY_OF_HOST
        for informer in self._hearsay.get(address) or self._older_hearsay.get(address) or (NOBODY,):
            if lately.count(informer) < MAX_PART_OF_LEFT * left and self._take(informer, now):
                self._dials.append(_Dial(address, host, informer, now))
                self._dials_of_host[host] = self._dials_of_host.get(host, 0) + 1
                return DialDecision.DIAL
        return DialDecision.TOO_MANY_OF_INFORMER

    def on_proved(self, address: str) -> None:
        """A dial of this address succeeded: its share is given back to all three counts."""
        for place in range(len(self._dials) - 1, -1, -1):
            dial = self._dials[place]
            if dial.address == address:
                del self._dials[place]
                self._leave(dial)
                if (bucket := self._buckets.get(dial.informer)) is not None:
                    bucket.left = min(bucket.left + 1, self._config.max_dials_per_informer)
                return

    def check_invariants(self) -> None:
        """Assert the bounds; for tests."""
        config = self._config
        hearsay = self._hearsay | self._older_hearsay
        assert len(hearsay) == len(self._hearsay) + len(self._older_hearsay) <= MAX_HEARSAY
        assert all(0 < len(informers) <= MAX_INFORMERS_REMEMBERED for informers in hearsay.values())
        assert len(self._buckets) <= MAX_INFORMERS
        assert all(0 <= bucket.left <= config.max_dials_per_informer for bucket in self._buckets.values())
        assert len(self._dials) <= config.max_dials_per_minute * (HOUR_S / MINUTE_S + 1)
        counts: dict[str, int] = {}
        for dial in self._dials:
            counts[dial.host] = counts.get(dial.host, 0) + 1
        assert counts == self._dials_of_host
        assert all(count <= config.max_dials_per_host for count in counts.values())
        assert [dial.at for dial in self._dials] == sorted(dial.at for dial in self._dials)

    def _rules_for(self, informer: str) -> _Rules:
        kind = kind_of(informer)
        rules = self._rules.get(kind)
        if rules is None:
            rules = self._rules[kind] = _shared_rules(self._config, self._trust, kind)
        return rules

    def _age_hearsay(self, now: float) -> None:
        self._hearsay, self._older_hearsay, self._hearsay_since = {}, self._hearsay, now

    def _remember(self, address: str, informer: str, now: float) -> None:
        informers = self._hearsay.get(address)
        if informers is None:
            if len(self._hearsay) >= MAX_HEARSAY // 2:
                self._age_hearsay(now)
            informers = self._hearsay[address] = self._older_hearsay.pop(address, (informer,))
        if informer in informers:
            return
        if len(informers) == MAX_INFORMERS_REMEMBERED:
            # Who made us dial most is worth least: else some who name us everything stand before all others.
            if self._buckets.keys().isdisjoint(informers):
                return  # none of them made us dial at all; asked first, for mostly it is so
            spent = min(informers, key=self._left_of)
            if self._left_of(informer) <= self._left_of(spent):
                return
            informers = tuple([other for other in informers if other != spent])
        self._hearsay[address] = (*informers, informer)

    def _left_of(self, informer: str) -> float:
        bucket = self._buckets.get(informer)
        return self._config.max_dials_per_informer if bucket is None else bucket.left

    def _take(self, informer: str, now: float) -> bool:
        most = self._config.max_dials_per_informer
        bucket = self._buckets.get(informer)
        if bucket is None:
            bucket = self._buckets[informer] = _Bucket(most, now)
            if len(self._buckets) > MAX_INFORMERS:
                self._buckets.popitem(last=False)
        bucket.left = min(most, bucket.left + (now - bucket.at) * self._config.informer_dials_per_s)
        bucket.at = now
        if bucket.left < 1:
            return False
        bucket.left -= 1
        self._buckets.move_to_end(informer)
        return True

    def _informers_since(self, when: float) -> list[str]:
        """On whose word each dial was made that has not succeeded."""
        return [dial.informer for dial in takewhile(lambda dial: dial.at > when, reversed(self._dials))]

    def _forget(self, when: float) -> None:
        while self._dials and self._dials[0].at <= when:
            self._leave(self._dials.popleft())

    def _leave(self, dial: _Dial) -> None:
        self._dials_of_host[dial.host] -= 1
        if not self._dials_of_host[dial.host]:
            del self._dials_of_host[dial.host]


@lru_cache(maxsize=MAX_SHARED)
def kind_of(address: str) -> AddressKind | None:
    """Of a `host:port`; None for what is no literal."""
    if not is_literal_address(address):
        return None
    host, _ = parse_address(address)
    literal = ipaddress.ip_address(host)
    literal = getattr(literal, "ipv4_mapped", None) or literal
    if literal.is_loopback:
        return AddressKind.LOOPBACK
    if is_private(host):
        return AddressKind.PRIVATE
    if _is_in(literal, _NEVER_NETWORKS):
        return AddressKind.NEVER
    if _is_in(literal, _RESERVED_NETWORKS) or (literal.version == 6 and literal not in _GLOBAL_V6):
        return AddressKind.RESERVED
    return AddressKind.PUBLIC


def _is_in(
    literal: ipaddress.IPv4Address | ipaddress.IPv6Address,
    networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> bool:
    return any(network.version == literal.version and literal in network for network in networks)


def _judge(config: DialConfig, trust: TrustConfig, informer_kind: AddressKind | None, address: str) -> DialDecision:
    kind = kind_of(address)
    if kind is None:
        return DialDecision.NO_LITERAL
    host, port = parse_address(address)
    decisions = _FAR_KINDS if informer_kind is None else _DECISIONS.get(informer_kind, _FAR_KINDS)
    decision = decisions[kind]
    if decision is DialDecision.RESERVED and trust.is_exempt(host):
        decision = DialDecision.DIAL  # somebody's laboratory, and he said so
    if decision.is_allowed and port < config.min_port and port not in config.low_ports:
        return DialDecision.LOW_PORT
    return decision


class _Rules(NamedTuple):
    """What informers of one kind may name, remembered: a node hears of the same few contacts all the time."""

    judge: Callable[[str], tuple[DialDecision, bool]]
    """Of an address: the decision, and whether its dials are counted."""
    is_free: Callable[[tuple[str, ...]], bool]
    """Whether a contact's addresses are all allowed and none is counted."""
    counted_of: Callable[[tuple[str, ...]], tuple[str, ...] | None]
    """Of a contact whose addresses are all allowed: those whose dials are counted. None for other contacts."""
    counted_host: Callable[[str], str | None]
    """Of an address: what its dials are counted for; None where they are not. The same for all informers."""


@lru_cache(maxsize=32)
def _shared_rules(config: DialConfig, trust: TrustConfig, informer_kind: AddressKind | None) -> _Rules:
    """One for all nodes of a process, which hear of the same."""

    @lru_cache(maxsize=MAX_SHARED)
    def judge(address: str) -> tuple[DialDecision, bool]:
        decision = _judge(config, trust, informer_kind, address)
        return decision, decision.is_allowed and counted_host(address) is not None

    @remembered(MAX_SHARED)
    def is_free(addresses: tuple[str, ...]) -> bool:
        return counted_of(addresses) == ()

    @lru_cache(maxsize=MAX_SHARED)
    def counted_of(addresses: tuple[str, ...]) -> tuple[str, ...] | None:
        verdicts = {address: judge(address) for address in addresses}
        if not 0 < len(addresses) <= MAX_ADDRESSES or not all(decision.is_allowed for decision, _ in verdicts.values()):
            return None
        return tuple(address for address in addresses if verdicts[address][1])

    @lru_cache(maxsize=MAX_SHARED)
    def counted_host(address: str) -> str | None:
        host, _ = parse_address(address)
        return None if trust.is_exempt(host) else machine_of(host)

    return _Rules(judge, is_free, counted_of, counted_host)


def _machine_at(address: str) -> str:
    try:
        return machine_of(parse_address(address)[0])
    except ConfigError:
        return NOBODY

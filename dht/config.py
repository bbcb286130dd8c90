"""Every bound and period of the overlay, as frozen values with the reason for each. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from synapse_p2p.exceptions import ConfigError

MAX_AGENT_RECORD_SIZE_BYTES = 1500
"""The whole envelope. Part of the protocol: an agent that seals a larger one is refused everywhere."""

MAX_VALUE_SIZE_BYTES = 16 * 1024
"""Of an immutable or a mutable record. Part of the protocol, for the same reason; three fill an answer."""


@dataclass(frozen=True, slots=True)
class LookupConfig:
    """How hard a lookup tries, and how long it waits."""

    k: int = 20  # contacts wanted; Kademlia section 2.2
    alpha: int = 3  # requests in flight; Kademlia section 2.3
    max_requests: int = 240  # in all: ten times what 10,000 honest nodes need (23), so only lies reach it
    paths: int = 4  # that share nobody, on a miss and for joins and puts: 20 % liars with tables poisoned 4x lose to it
    max_paths: int = 8  # where too few answered, or storers contradict each other
    path_seeds: int = 10  # own contacts that a path starts from: one that is a liar, or dead, must not end it
    max_per_group: int = 2  # contacts of one party (a /24) in an answer or among those a lookup asks
    density_deviations: float = 3.0  # above what chance brings, and a list is crowded; infinite: none ever is
    min_points: int = 4  # lookups behind an estimate of the network's size that decides what we store; spread 11 %
    min_timeout_s: float = 0.2  # floor of the wait before somebody else is asked beside a slow contact
    max_timeout_s: float = 5.0  # ceiling of every wait; who needs more is of no use to a lookup
    request_timeout_s: float = 1.5  # at least so long is waited before a contact failed: a busy process pauses for 1 s
    dial_timeout_s: float = 2.0  # for a contact that has to be dialed, answer included: two more round trips
    dead_pause_s: float = 30.0  # who failed is left alone by lookups for so long ...
    max_dead_pause_s: float = 300.0  # ... doubling up to this while it goes on failing
    miss_pause_s: float = 30.0  # a key that nobody has is not searched for again for so long ...
    max_miss_pause_s: float = 300.0  # ... doubling up to this

    def __post_init__(self) -> None:
        _all_positive(self)
        for low, high in (
            ("paths", "max_paths"),
            ("min_timeout_s", "max_timeout_s"),
            ("dead_pause_s", "max_dead_pause_s"),
            ("miss_pause_s", "max_miss_pause_s"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(f"LookupConfig.{low} is {getattr(self, low)}; it has to be at most {high}")
        if self.alpha > self.max_requests:
            raise ConfigError(
                f"LookupConfig.alpha is {self.alpha}; it has to be at most max_requests, {self.max_requests}"
            )


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """What the routing table keeps, and for how long it believes it."""

    k: int = 20  # per k-bucket, and as many waiting: so many rarely leave within an hour; section 2.2
    max_failures: int = 2  # a single lost reply must not cost a long-lived contact its place; section 4.1
    stale_after_s: float = 900.0  # unseen this long, a contact is asked whether it lives ...
    max_stale_after_s: float = 3600.0  # ... and one that was there for long after this at the latest
    max_per_next_bits: int = 5  # of a far k-bucket's contacts share their next 3 bits: shorter paths, broken clusters
    max_group_per_bucket: int = 2  # of one /24, in IPv6 one /48; this and what follows are about hosts not exempt
    max_group: int = 4  # of one /24 (/48) in the whole table: half of it takes an attacker fifteen of them
    max_wide_group: int = 8  # of one /16 (/32) in the whole table

    def __post_init__(self) -> None:
        _all_positive(self)


@dataclass(frozen=True, slots=True)
class DialConfig:
    """How much strangers' word makes us dial; addresses that `TrustConfig` exempts are not counted."""

    min_port: int = 1024  # below it are the services of machines that have nothing to do with us
    low_ports: tuple[int, ...] = ()  # below `min_port`, dialed all the same
    max_exchange_addresses: int = 20  # used of one answer to a peer exchange
    max_dials_per_informer: int = 20  # at once: a join through one seed that names twenty
    informer_dials_per_s: float = 1.0  # and then
    max_dials_per_host: int = 3  # unproved, of one host in an hour: what a bystander whose address is named feels
    max_dials_per_minute: int = 60  # unproved, in all

    def __post_init__(self) -> None:
        _all_positive(self)
        for port in self.low_ports:
            if not 0 < port < self.min_port:
                raise ConfigError(f"DialConfig.low_ports has {port}; it is for ports 1 to {self.min_port - 1}")


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """What a storer keeps for others, and for how long."""

    max_agent_record_bytes: int = MAX_AGENT_RECORD_SIZE_BYTES  # 32 of the largest fill an answer
    max_value_bytes: int = MAX_VALUE_SIZE_BYTES  # a storer may take less than the protocol allows
    lease_s: float = 900.0  # life an owner asks for: how long a crashed agent can still be found
    max_lease_s: float = 3600.0  # the largest remaining life a storer grants, whatever the owner signed
    ttl_s: float = 86_400.0  # of a value, where its owner says nothing; renewed at half of it
    max_ttl_s: float = 172_800.0  # of a value at most: two renewals of the longest may be lost; tombstones live as long
    max_future_s: float = 300.0  # how far an owner's clock may be ahead of ours
    max_records_per_key: int = 1000  # of one capability, at one storer; beyond it the capability is spread
    party_share: float = (
        1 / 16
    )  # of a key's room: for so much one /24 counts, in IPv6 one /48, when it is asked how many
    max_records: int = 16_384  # in all: 24 MiB of the largest agent records
    max_bytes: int = 32 * 1024 * 1024  # in all, with what a record takes beside its own bytes
    max_records_per_owner: int = 512  # one with 10,000 records in 1,000 nodes has 220 at each, 350 at the worst
    max_bytes_per_owner: int = 1024 * 1024  # as many parts of all bytes as of all records: 1 in 32
    max_records_per_group: int = 1024  # of the owners of one /24: whoever would fill a store needs 16 of them
    max_bytes_per_group: int = 2 * 1024 * 1024  # likewise, 1 part in 16
    unseen_share: float = 0.05  # of records and bytes, for all whose owner was not seen at an address of its own
    max_answer_bytes: int = 48 * 1024  # of records in an answer; the rest of a 64 KiB frame is for contacts
    max_owned_records: int = 16_384  # values of our own that are renewed: signing them all takes a second
    max_owned_bytes: int = 64 * 1024 * 1024  # likewise, in memory
    restart_grace_s: float = 600.0  # life of what ran out by the wall clock while we were off: the clock may be wrong

    def __post_init__(self) -> None:
        _all_positive(self)
        if self.ttl_s > self.max_ttl_s:
            raise ConfigError(f"RecordConfig.ttl_s is {self.ttl_s}; at most max_ttl_s is granted, {self.max_ttl_s}")
        for name in ("unseen_share", "party_share"):
            if getattr(self, name) > 1:
                raise ConfigError(f"RecordConfig.{name} is {getattr(self, name)}; it is a part of 1")
        if self.lease_s > self.max_lease_s:
            raise ConfigError(
                f"RecordConfig.lease_s is {self.lease_s}; at most max_lease_s is granted, {self.max_lease_s}"
            )
        if self.max_answer_bytes < self.max_agent_record_bytes:
            raise ConfigError("RecordConfig.max_answer_bytes has to hold at least one record of max_agent_record_bytes")


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """When a node doubts itself rather than others."""

    lost_after_silent_peers: int = 5  # in a row and all different: of a swarm half of which died, 1 in 32 such rows
    lost_after_s: float = 3.0  # without hearing anybody; a working network is never so quiet while we ask
    beat_s: float = 1.0  # between looks at the clock
    min_stall_s: float = 1.0  # lateness of a beat that is a stall; a busy loop is late by some 0.1 s
    min_sleep_s: float = 10.0  # by which the wall ran ahead of us; a clock that is set jumps by less, mostly
    announce_after_s: float = 1.5  # of a pause: others have asked us in vain by then, and leave us alone for a while
    drop_sessions_after_s: float = 20.0  # of a pause: peers may have given our sessions up by then
    min_clock_parties: int = 5  # whose clocks are compared with ours; three of them would have to lie
    max_clock_error_s: float = 30.0  # a tenth of what records bear: time to act
    clock_s: float = 3600.0  # between comparisons; clocks that run free drift by some seconds a day
    look_s: float = 5.0  # between questions to a few peers while nobody answers

    def __post_init__(self) -> None:
        _all_positive(self)


@dataclass(frozen=True, slots=True)
class DHTConfig:
    """All settings of a node of the overlay."""

    lookup: LookupConfig = field(default_factory=LookupConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    dial: DialConfig = field(default_factory=DialConfig)
    records: RecordConfig = field(default_factory=RecordConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    refresh_s: float = 3600.0  # a k-bucket that no lookup went through this long gets one; section 2.3
    measure_s: float = 900.0  # between lookups of a random key, as long as the size of the network is not known well
    liveness_s: float = 60.0  # between looks for stale contacts to ask
    check_dial_pause_s: float = 600.0  # one address is check-dialed at most this often, whoever announces it
    check_dial_source_pause_s: float = 1.0  # and one host that is not exempt, whatever ports it announces
    prove_s: float = 20.0  # for peers to dial us that we asked to, as nobody had; then we take ourselves for a client
    prove_pause_s: float = 660.0  # until we ask again: when one gets through, all have to want to (check_dial_pause_s)
    join_retry_min_s: float = 1.0  # after a join that reached no seed, wait this long ...
    join_retry_max_s: float = 60.0  # ... doubling up to this
    remember_s: float = 300.0  # between looks for the best peers to come back through; a killed node loses one look
    leave_timeout_s: float = 1.0  # for telling neighbours that we go: those who do not answer find out by themselves
    renew_fraction: float = 0.5  # of the lease: one renewal may be lost and the record still lives
    renew_look_s: float = 60.0  # between looks for values of our own to sign anew
    renew_ahead_s: float = 600.0  # what is due so soon is renewed with what is due: neighbours share a search
    replicate_s: float = 1800.0  # a record is offered to its region this long after the last time; copies keep its end
    offering_storers: int = 3  # nearest storers that offer a newcomer its records: one may be dead; 0, and nobody does
    offer_pause_s: float = 60.0  # a contact that comes back is offered them again this long after the last time ...
    max_offer_pause_s: float = 7200.0  # ... doubling up to this: who looks for itself every hour has lost nothing
    replicate_look_s: float = 60.0  # between looks for records to offer, for they have lost storers or it is time
    expire_s: float = 60.0  # between sweeps of expired records; readers and writers see none in any case

    def __post_init__(self) -> None:
        _all_positive(self, or_zero="offering_storers")
        if self.offer_pause_s > self.max_offer_pause_s:
            raise ConfigError("DHTConfig.offer_pause_s has to be at most max_offer_pause_s")
        if self.join_retry_min_s > self.join_retry_max_s:
            raise ConfigError("DHTConfig.join_retry_min_s has to be at most join_retry_max_s")
        if self.renew_fraction >= 1:
            raise ConfigError(
                f"DHTConfig.renew_fraction is {self.renew_fraction}; it has to be under 1, or records lapse"
            )


def _all_positive(
    config: LookupConfig | RoutingConfig | DialConfig | RecordConfig | HealthConfig | DHTConfig, *, or_zero: str = ""
) -> None:
    for knob in fields(config):
        value = getattr(config, knob.name)
        # `not value > 0` rather than `value <= 0`: it refuses NaN as well.
        if isinstance(value, (int, float)) and not value > 0 and not (knob.name == or_zero and value == 0):
            least = "0 or more" if knob.name == or_zero else "above 0"
            raise ConfigError(f"{type(config).__name__}.{knob.name} is {value}; it has to be {least}")

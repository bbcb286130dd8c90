"""Every bound and period of the overlay, as frozen values with the reason for each. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from synapse_p2p.exceptions import ConfigError

MAX_AGENT_RECORD_SIZE_BYTES = 1500
"""The whole envelope. Part of the protocol: an agent that seals a larger one is refused everywhere."""


@dataclass(frozen=True, slots=True)
class LookupConfig:
    """How hard a lookup tries."""

    k: int = 20  # contacts wanted; Kademlia section 2.2
    alpha: int = 3  # requests in flight; Kademlia section 2.3
    request_timeout_s: float = 2.0  # past it the contact failed; covers a dial over a slow path
    max_requests: int = 240  # in all: ten times what 10,000 honest nodes need (23), so only lies reach it

    def __post_init__(self) -> None:
        _all_positive(self)
        if self.alpha > self.max_requests:
            raise ConfigError(
                f"LookupConfig.alpha is {self.alpha}; it has to be at most max_requests, {self.max_requests}"
            )


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """What the routing table keeps, and for how long it believes it."""

    k: int = 20  # per k-bucket, and as many waiting: so many rarely leave within an hour; section 2.2
    max_failures: int = 2  # a single lost reply must not cost a long-lived contact its place; section 4.1
    stale_after_s: float = 900.0  # unseen this long, a contact is asked whether it lives
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
    lease_s: float = 900.0  # life an owner asks for: how long a crashed agent can still be found
    max_lease_s: float = 3600.0  # the largest remaining life a storer grants, whatever the owner signed
    max_future_s: float = 300.0  # how far an owner's clock may be ahead of ours
    max_records_per_key: int = 1000  # of one capability, at one storer; beyond it the capability is spread
    max_records: int = 16_384  # in all: 24 MiB of the largest records
    max_records_per_owner: int = 64  # 32 keys at two depths each: what one honest agent can need
    max_answer_bytes: int = 48 * 1024  # of records in an answer; the rest of a 64 KiB frame is for contacts

    def __post_init__(self) -> None:
        _all_positive(self)
        if self.lease_s > self.max_lease_s:
            raise ConfigError(
                f"RecordConfig.lease_s is {self.lease_s}; at most max_lease_s is granted, {self.max_lease_s}"
            )
        if self.max_answer_bytes < self.max_agent_record_bytes:
            raise ConfigError("RecordConfig.max_answer_bytes has to hold at least one record of max_agent_record_bytes")


@dataclass(frozen=True, slots=True)
class DHTConfig:
    """All settings of a node of the overlay."""

    lookup: LookupConfig = field(default_factory=LookupConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    dial: DialConfig = field(default_factory=DialConfig)
    records: RecordConfig = field(default_factory=RecordConfig)
    refresh_s: float = 3600.0  # a k-bucket that no lookup went through this long gets one; section 2.3
    liveness_s: float = 60.0  # between looks for stale contacts to ask
    check_dial_pause_s: float = 600.0  # one address is check-dialed at most this often, whoever announces it
    check_dial_source_pause_s: float = 1.0  # and one host that is not exempt, whatever ports it announces
    join_retry_min_s: float = 1.0  # after a join that reached no seed, wait this long ...
    join_retry_max_s: float = 60.0  # ... doubling up to this
    renew_fraction: float = 0.5  # of the lease: one renewal may be lost and the record still lives
    expire_s: float = 60.0  # between sweeps of expired records; readers and writers see none in any case

    def __post_init__(self) -> None:
        _all_positive(self)
        if self.join_retry_min_s > self.join_retry_max_s:
            raise ConfigError("DHTConfig.join_retry_min_s has to be at most join_retry_max_s")
        if self.renew_fraction >= 1:
            raise ConfigError(
                f"DHTConfig.renew_fraction is {self.renew_fraction}; it has to be under 1, or records lapse"
            )


def _all_positive(config: LookupConfig | RoutingConfig | DialConfig | RecordConfig | DHTConfig) -> None:
    for knob in fields(config):
        value = getattr(config, knob.name)
        # `not value > 0` rather than `value <= 0`: it refuses NaN as well.
        if isinstance(value, (int, float)) and not value > 0:
            raise ConfigError(f"{type(config).__name__}.{knob.name} is {value}; it has to be above 0")

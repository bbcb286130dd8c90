"""Every bound and period of the RPC layer, as frozen values with the reason for each."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.trust import TrustConfig

KIB = 1024
MIB = 1024 * KIB
MAX_U24 = 2**24 - 1  # the longest frame, which has three bytes for its length


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Bounds of one encrypted session, and its patience."""

    max_control_frame_bytes: int = 64 * KIB
    max_task_frame_bytes: int = 4 * MIB  # larger payloads are streams
    max_calls_served: int = 64  # handlers that one peer keeps running
    max_control_calls: int = (
        128  # overlay calls of ours in flight; the others wait, for a peer takes 256 and refuses more
    )
    max_calls_queued: int = 256  # calls of one peer that wait for a free place; beyond: busy
    max_waiting_bytes: int = 8 * MIB  # of the messages of those; beyond: busy
    max_unread_bytes: int = (
        8 * MIB  # of items that nobody here has taken: beyond, nothing more is read; nor do all windows grow past it
    )
    handshake_timeout_s: float = 5.0
    idle_ping_s: float = 120.0  # silence after which we ask whether the peer is there
    ping_timeout_s: float = 20.0  # silence after that ping at which the session is given up
    write_stall_s: float = 10.0  # no progress while writing this long aborts
    max_unsent_bytes: int = 8 * MIB  # more than this waits for the peer to read: nothing more of it is read
    goodbye_timeout_s: float = 1.0  # how long a close waits for the last bytes to leave

    def __post_init__(self) -> None:
        _all_positive(self)

    def with_messages_of(self, size_bytes: int) -> SessionConfig:
        """The same for messages of at least this size, as far as a frame's length can say it."""
        if size_bytes <= self.max_task_frame_bytes:
            return self
        return replace(self, max_task_frame_bytes=min(MAX_U24, size_bytes))


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How many peers stay connected, and how hard we dial."""

    max_sessions: int = 256  # opened and accepted; never more than a quarter of what the process may have open
    max_sessions_per_address: int = 8  # accepted from one host (in IPv6 one /64) that `trust` does not exempt
    reserved_sessions: int = 8  # of max_sessions, at most half of them: accepted ones never take these places
    max_idle_sessions: int = 64  # kept though nothing is in flight; least recently used out first
    max_handshakes: int = 128  # accepted and not proved yet; past it the oldest goes
    max_handshakes_per_address: int = 8  # of these, from one host as above; past it the oldest of that host goes
    trust: TrustConfig = field(default_factory=TrustConfig)
    dial_timeout_s: float = 2.0  # connect alone; the handshake has its own limit
    check_dial_timeout_s: float = 5.0
    redial_pause_s: float = 1.0  # after a failed dial the same address answers `unavailable` at once this long ...
    max_redial_pause_s: float = 30.0  # ... doubling up to this
    max_remembered_failures: int = 1024
    stop_timeout_s: float = 0.5  # how long a stop waits for handlers that ignore being cancelled

    def __post_init__(self) -> None:
        _all_positive(self)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Bounds and patience of a listener."""

    session: SessionConfig = field(default_factory=SessionConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    header_timeout_s: float = 10.0  # from connect to a whole length or preamble
    min_body_bytes_per_s: int = 16 * KIB  # slower senders of a body are cut off ...
    body_grace_s: float = 10.0  # ... after this much on top
    write_stall_s: float = 10.0
    stop_timeout_s: float = 0.5  # how long a stop waits for handlers that ignore being cancelled
    max_plain_connections: int = 512  # plain callers, and whoever has not said yet what it wants
    max_plain_connections_per_address: int = 64  # of one host that `trust` does not exempt; past it its oldest goes
    max_plain_buffered_bytes: int = 64 * MIB  # of unfinished requests and unread answers, in all; beyond: busy
    linger_s: float = 1.0  # how long a caller refused early may go on sending before it is cut off
    handler_threads: int = 8  # for plain `def` handlers
    max_handlers: int = 256  # running at once over all connections

    def __post_init__(self) -> None:
        _all_positive(self)

    @property
    def trust(self) -> TrustConfig:
        """Which hosts limits per address do not count: what `pool` says, for sessions and plain calls alike."""
        return self.pool.trust


def _all_positive(config: SessionConfig | PoolConfig | ServerConfig) -> None:
    for knob in fields(config):
        value = getattr(config, knob.name)
        if isinstance(value, (int, float)) and not value > 0:  # so put, it refuses NaN as well
            raise ConfigError(f"{type(config).__name__}.{knob.name} is {value}; it has to be above 0")

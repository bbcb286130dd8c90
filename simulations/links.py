"""What stands between hosts besides distance: loss, jitter, narrow lines, partitions, routers that let nobody in.

Pure: it says what becomes of a message; `delivery.py` acts on it. Everything can change at any time.

A session is a stream, as TCP makes one: nothing of it is ever lost, but it comes late. A message that is lost is sent
again after RETRANSMIT_S, then after twice that, and so on up to MAX_RETRANSMIT_S, until one gets through; what was sent
after it waits for it. Opening a connection is the same with a first pause of CONNECT_RETRANSMIT_S, and who dials does
not wait for long: of two that are lost, it hears nothing. Source: RFC 6298.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID

if TYPE_CHECKING:
    from random import Random

RETRANSMIT_S = 0.2  # what the common kernels wait at least
CONNECT_RETRANSMIT_S = 1.0  # before a round trip was ever measured; RFC 6298 section 2
MAX_RETRANSMIT_S = 60.0  # RFC 6298 section 2.5
MAX_STOPPED_S = 900.0  # when common kernels give a connection up, roughly
MESSAGE_OVERHEAD_BYTES = 60  # TCP and IP 40, a record's tag 16, a frame's header 4
MICROSECONDS = 1_000_000
NOBODY = bytes(32)
"""Stands in the digest for all hosts where a fault is not one host's."""


class Nat(Enum):
    """What becomes of a dial of a host. Its own dials work, and over their sessions it is called like anybody."""

    OPEN = "open"
    REFUSES = "refuses"
    DROPS = "drops"  # the dialer hears nothing until its time is up


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """One direction between two hosts. `loss` is the share of messages lost each time they are sent."""

    loss: float = 0.0
    jitter_s: float = 0.0  # every message takes up to this much longer

    def __post_init__(self) -> None:
        if not 0 <= self.loss < 1:
            raise ConfigError(f"loss is {self.loss}; it has to be 0 or more and under 1, where a partition begins")
        if not self.jitter_s >= 0:
            raise ConfigError(f"jitter_s is {self.jitter_s}; it has to be 0 or more")


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Nothing gets from `sources` to `targets`; to everybody but the sources, where `targets` is None."""

    number: int
    sources: frozenset[NodeID]
    targets: frozenset[NodeID] | None
    is_one_way: bool

    def stops(self, source: NodeID, target: NodeID) -> bool:
        """Whether a message from one to the other is stopped."""
        if self._leads(source, target):
            return True
        return not self.is_one_way and self._leads(target, source)

    def _leads(self, source: NodeID, target: NodeID) -> bool:
        if source not in self.sources:
            return False
        return target not in self.sources if self.targets is None else target in self.targets


class Links:
    """The state of all links. `on_fault(node_id, text)` is told of every change, in order, for the digest.

    Invariant: `is_perfect` as long as no message can be stopped or held up by anything here.
    """

    def __init__(self, rng: Random, on_fault: Callable[[NodeID, str], None]) -> None:
        self._rng = rng
        self._on_fault = on_fault
        self._quality = LinkQuality()
        self._qualities: dict[tuple[NodeID, NodeID], LinkQuality] = {}
        self._upload_bytes_per_s: dict[NodeID, float] = {}
        self._free_us: dict[NodeID, int] = {}  # when a narrow line has sent what it was given
        self._cuts: dict[int, Cut] = {}
        self._cut_count = 0
        self.is_perfect = True

    # What a scenario does

    def set_quality(self, quality: LinkQuality, *, source: NodeID | None = None, target: NodeID | None = None) -> None:
        """Of the direction from `source` to `target`; without both, of every direction that has none of its own."""
        if source is None and target is None:
            self._quality = quality
        elif source is None or target is None:
            raise ConfigError("a link has a source and a target; give both, or none for all links")
        else:
            self._qualities[source, target] = quality
        where = "all" if target is None else target.hex()
        self._change(source or NOBODY, f"loss {quality.loss!r} jitter {quality.jitter_s!r} to {where}")

    def limit_upload(self, host: NodeID, bytes_per_s: float | None) -> None:
        """How fast the line is by which a host sends; None ends the limit. What does not fit waits its turn."""
        if bytes_per_s is None:
            self._upload_bytes_per_s.pop(host, None)
            self._free_us.pop(host, None)
        elif bytes_per_s > 0:
            self._upload_bytes_per_s[host] = bytes_per_s
        else:
            raise ConfigError(f"bytes_per_s is {bytes_per_s}; it has to be above 0")
        self._change(host, f"upload {bytes_per_s!r} bytes/s")

    def cut(self, sources: Iterable[NodeID], targets: Iterable[NodeID] | None = None, *, one_way: bool = False) -> Cut:
        """Stop everything between `sources` and `targets`, or all others; `one_way` stops only what sources send."""
        sources = list(sources)
        targets = None if targets is None else list(targets)
        self._cut_count += 1
        cut = Cut(self._cut_count, frozenset(sources), None if targets is None else frozenset(targets), one_way)
        self._cuts[cut.number] = cut
        self.is_perfect = False
        for node_id in sources:
            self._on_fault(node_id, f"cut {cut.number} {'one way' if one_way else 'both ways'}")
        for node_id in targets or ():
            self._on_fault(node_id, f"cut {cut.number} target")
        return cut

    def heal(self, cut: Cut) -> None:
        """End a cut; a second time nothing happens. Whoever holds messages that it stopped looks at them again."""
        if self._cuts.pop(cut.number, None) is not None:
            self._change(NOBODY, f"heal {cut.number}")

    # What becomes of a message

    def is_cut(self, source: NodeID, target: NodeID) -> bool:
        """Whether nothing gets from one to the other now."""
        return any(cut.stops(source, target) for cut in self._cuts.values())

    def delay_us(self, now_us: int, source: NodeID, target: NodeID, size_bytes: int, *, is_opening: bool) -> int:
        """By how much a message of these bytes is later than the distance says; `is_opening` one for a connection."""
        quality = self._qualities.get((source, target), self._quality)
        delay_us = self._queue(now_us, source, size_bytes)
        if quality.jitter_s:
            delay_us += round(self._rng.random() * quality.jitter_s * MICROSECONDS)
        if quality.loss:
            pause_s = CONNECT_RETRANSMIT_S if is_opening else RETRANSMIT_S
            while self._rng.random() < quality.loss:
                delay_us += round(pause_s * MICROSECONDS)
                pause_s = min(2 * pause_s, MAX_RETRANSMIT_S)
        return delay_us

    def sent_again_us(self, sent_us: int, now_us: int) -> int | None:
        """When something of a session is sent again that was stopped since `sent_us`: at `now_us` or later.

        None when TCP has given up by now.
        """
        if now_us - sent_us > MAX_STOPPED_S * MICROSECONDS:
            return None
        pause_s = RETRANSMIT_S
        while sent_us < now_us:
            sent_us += round(pause_s * MICROSECONDS)
            pause_s = min(2 * pause_s, MAX_RETRANSMIT_S)
        return sent_us

    def _queue(self, now_us: int, source: NodeID, size_bytes: int) -> int:
        bytes_per_s = self._upload_bytes_per_s.get(source)
        if bytes_per_s is None:
            return 0
        takes_us = round((size_bytes + MESSAGE_OVERHEAD_BYTES) / bytes_per_s * MICROSECONDS)
        self._free_us[source] = max(now_us, self._free_us.get(source, 0)) + takes_us
        return self._free_us[source] - now_us

    def _change(self, node_id: NodeID, fault: str) -> None:
        qualities = (self._quality, *self._qualities.values())
        self.is_perfect = (
            not self._cuts
            and not self._upload_bytes_per_s
            and not any(quality.loss or quality.jitter_s for quality in qualities)
        )
        self._on_fault(node_id, fault)

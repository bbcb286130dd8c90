"""The last things that happened in a simulated world, for whoever has to find out why a run failed.

The whole of a run is not kept: the seed has it. A replay shows the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from simulations.network import Digest
from synapse_p2p.identity import NodeID

MAX_TRACED_EVENTS = 2_000
"""The newest events that are kept: some seconds of a small swarm's life."""
_SHORT_ID_BYTES = 4


class TracingDigest(Digest):
    """A digest that also keeps its newest events. It changes nothing of the run."""

    def __init__(self, *, max_events: int = MAX_TRACED_EVENTS) -> None:
        super().__init__()
        self._events: deque[tuple[int, NodeID, NodeID | None, str, int]] = deque(maxlen=max_events)

    def add_message(self, at_us: int, source: NodeID, target: NodeID, endpoint: str, body: bytes) -> None:
        super().add_message(at_us, source, target, endpoint, body)
        self._events.append((at_us, source, target, endpoint, len(body)))

    def add_fault(self, at_us: int, node_id: NodeID, fault: str) -> None:
        super().add_fault(at_us, node_id, fault)
        self._events.append((at_us, node_id, None, fault, 0))

    def lines(self) -> Iterator[str]:
        """One line an event, oldest first: virtual seconds, who, to whom, what, bytes."""
        for at_us, source, target, what, size_bytes in self._events:
            at = f"{at_us / 1_000_000:14.6f} {_short(source)}"
            yield f"{at} fault: {what}" if target is None else f"{at} -> {_short(target)} {what} {size_bytes}"


def _short(node_id: NodeID) -> str:
    return node_id[:_SHORT_ID_BYTES].hex()

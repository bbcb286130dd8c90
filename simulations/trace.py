"""The last things that happened in a simulated world, for whoever has to find out why a run failed.

The whole of a run is not kept: the seed has it. A replay shows the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from simulations.delivery import MAX_UNHASHED_PIECES, Digest, Event, read_events
from simulations.virtual_loop import MICROSECONDS
from synapse_p2p.identity import NodeID

MAX_TRACED_EVENTS = 2_000
"""The newest events that are kept: some seconds of a small swarm's life."""
_PIECES_PER_EVENT = 3
_SHORT_ID_BYTES = 4


class TracingDigest(Digest):
    """A digest that also keeps its newest events. It changes nothing of the run.

    What was hashed is kept as it is and read when somebody asks: that costs a run nothing. `on_fault` is told of every
    fault: at which second, and what.
    """

    def __init__(self, *, max_events: int = MAX_TRACED_EVENTS) -> None:
        super().__init__()
        self.on_fault: Callable[[float, str], None] = lambda at_s, fault: None
        self._max_events = max_events
        self._hashed: deque[bytes] = deque(maxlen=1 + -(-_PIECES_PER_EVENT * max_events // MAX_UNHASHED_PIECES))

    def add_fault(self, at_us: int, node_id: NodeID, fault: str) -> None:
        super().add_fault(at_us, node_id, fault)
        self.on_fault(at_us / MICROSECONDS, fault)

    def lines(self) -> Iterator[str]:
        """One line an event, oldest first: virtual seconds, who, to whom, what, bytes."""
        self._hash_all()
        newest: deque[Event] = deque(maxlen=self._max_events)
        for hashed in self._hashed:
            newest.extend(read_events(hashed))
        for event in newest:
            at = f"{event.at_us / MICROSECONDS:14.6f} {_short(event.source)}"
            if event.target is None:
                yield f"{at} fault: {event.what}"
            else:
                yield f"{at} -> {_short(event.target)} {event.what} {event.size_bytes}"

    def _on_hashed(self, events: bytes) -> None:
        if events:
            self._hashed.append(events)


def _short(node_id: NodeID) -> str:
    return node_id[:_SHORT_ID_BYTES].hex()

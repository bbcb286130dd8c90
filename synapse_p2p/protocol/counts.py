"""What is counted where it happens: how calls ended, and bytes. Numbers that only grow; `metrics.py` shows them."""

from __future__ import annotations


class Ends:
    """How calls of one kind ended, each once. `failed` is by code of the wire, of which there are few, whatever a peer
    says.
    """

    __slots__ = ("failed", "ok")

    def __init__(self) -> None:
        self.ok = 0
        self.failed: dict[str, int] = {}

    def note(self, code: str | None) -> None:
        """One more is over: with this code, or None where it returned."""
        if code is None:
            self.ok += 1
        else:
            self.failed[code] = self.failed.get(code, 0) + 1


class EndpointEnds(Ends):
    """Those of one endpoint, and how long they took, all together."""

    __slots__ = ("took_s",)

    def __init__(self) -> None:
        super().__init__()
        self.took_s = 0.0


class SessionCounts:
    """Of any number of sessions. `asked` are calls of ours, `served` those of peers; those of the overlay, which are
    many and short, are apart. Bytes are those of the connections, handshakes included.
    """

    __slots__ = ("asked", "overlay_asked", "overlay_served", "received_bytes", "sent_bytes", "served")

    def __init__(self) -> None:
        self.asked = Ends()
        self.served = Ends()
        self.overlay_asked = Ends()
        self.overlay_served = Ends()
        self.received_bytes = 0
        self.sent_bytes = 0

"""Where a peer is dialed, as people write it: `host:port`, or `id@host:port` where nobody but that peer will do.

Pure: one parser for seeds, clients and commands. What a host is worth is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID, parse_node_id
from synapse_p2p.transport.base import parse_address

__all__ = ["PeerAddress", "parse_node_id"]


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A host, a port above 0, and the id that has to be proved there; None takes whoever answers."""

    host: str
    port: int
    id: NodeID | None = None

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Of `host:port`, `[v6]:port`, or either after `id@`, the id as 64 hexadecimal digits.

        Raises ConfigError that shows the form wanted.
        """
        id_text, at, address = text.rpartition("@")
        host, port = parse_address(address)
        if port == 0:
            raise ConfigError(f"address {text!r} has port 0; write the port that the node prints when it starts")
        try:
            return cls(host, port, parse_node_id(id_text) if at else None)
        except ConfigError as error:
            raise ConfigError(f"in {text!r:.160}, before the @: {error}") from error

    @property
    def address(self) -> str:
        """What is dialed: `host:port`, with brackets round an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def text(self) -> str:
        """All of it in one spelling, which `parse` reads back."""
        return self.address if self.id is None else f"{self.id.hex()}@{self.address}"

    def __str__(self) -> str:
        return self.text

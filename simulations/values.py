"""The overlay as its users see it, put a value and get it back: the one place where scenarios touch that interface."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dht.config import DHTConfig, HealthConfig
from dht.keyspace import Key, content_key
from dht.stored_record import ANY_OWNER
from dht.values import ImmutableRecord
from simulations.history import Acknowledged
from simulations.network import EPOCH_S, VirtualHost
from simulations.population import Resident
from simulations.world import RARE_BEAT_S

LIFE_S = 48 * 3600.0
"""Of a value: as long as the protocol allows, and longer than any scenario."""
NEVER_S = 365 * 24 * 3600.0
SIZE_BYTES = 100


@dataclass(frozen=True, slots=True)
class Value:
    """One that is stored: its number, and the key, which follows from it."""

    number: int
    key: Key


def config(*, beat_s: float = RARE_BEAT_S) -> DHTConfig:
    """What nodes are set to: owners renew nothing, so that what is kept is kept by its storers.

    A second of `beat_s` is for scenarios in which nodes stand still, or lose their network.
    """
    return replace(DHTConfig(), health=HealthConfig(beat_s=beat_s), renew_look_s=NEVER_S)


def key_of(number: int) -> Key:
    """Where value number n is stored."""
    return content_key(_bytes_of(number))


async def put(resident: Resident, number: int) -> Value | None:
    """Store value number n; None where its owner is not told that others keep it."""
    node = resident.node
    if node is None:
        return None
    unix_ms = round(resident.host.runtime.unix_now() * 1000)
    report = await node.put(_bytes_of(number), ttl_s=LIFE_S)
    if not report.is_stored:
        return None
    ends_ms = unix_ms + round(LIFE_S * 1000)  # or later, if it had to wait before it was signed
    resident.note_acknowledged(Acknowledged(report.key, ANY_OWNER, ends_ms, ends_ms / 1000 - EPOCH_S))
    return Value(number, report.key)


async def get(resident: Resident, value: Value) -> bool:
    """Whether a plain read finds the value."""
    node, history = resident.node, resident.history
    if node is None:
        return False
    if history is None:
        return await node.get(value.key) == _bytes_of(value.number)
    client = (resident.id, resident.life)
    with history.request(resident.id, "get", resident.find_timeout_s):
        found = await node.get(value.key)
    if found is not None:
        history.note_value(client, value.key, 0, found)
    return found == _bytes_of(value.number)


def sealed(host: VirtualHost, number: int) -> bytes:
    """Value number n as this host would have it stored."""
    unix_ms = round(host.runtime.unix_now() * 1000)
    record = ImmutableRecord(
        host.identity.public_key, unix_ms, unix_ms + round(LIFE_S * 1000), host.network_id, _bytes_of(number)
    )
    return record.seal(host.identity)


def _bytes_of(number: int) -> bytes:
    return b"value %d " % number + bytes(SIZE_BYTES)

"""Values that members of a world put, change, delete and read: what they are told is noted in a History.

Everybody puts immutable values, and each has one mutable value, which it writes and deletes.
"""

from __future__ import annotations

from dataclasses import dataclass

from dht.keyspace import Key, content_key, mutable_key
from dht.messages import Store
from dht.node import DHTNode
from dht.owned import PutReport
from dht.records import RecordKind, seal
from dht.stored_record import ANY_OWNER, Slot
from simulations.faults import MAX_SKEW_S
from simulations.history import Acknowledged
from simulations.members import Member, Members
from simulations.network import EPOCH_S
from synapse_p2p.protocol.wire import pack


@dataclass(frozen=True, slots=True)
class KeptValue:
    """What was acknowledged last under a key: `seq` is of that version, or a little less; `value` is None
    where it was deleted."""

    key: Key
    slot: Slot
    seq: int
    value: bytes | None

    @property
    def is_mutable(self) -> bool:
        return self.slot != ANY_OWNER


class MemberValues:
    """The values of all members. `kept` has the newest version of each whose owner knows that others keep it."""

    def __init__(self, members: Members) -> None:
        self.kept: dict[Key, KeptValue] = {}
        self._members = members
        self._count = 0  # of all that were ever put or written

    async def put(self, member: Member) -> None:
        """An immutable value."""
        value = self._next_value()
        await member.do(lambda node: self._put(node, member, value))

    async def write(self, member: Member) -> None:
        """The next version of its mutable value."""
        value = self._next_value()
        await member.do(lambda node: self._write(node, member, value))

    async def delete(self, member: Member) -> None:
        """A tombstone in the place of that, if it knows of it: a process that restarted does not."""
        await member.do(lambda node: self._delete(node, member))

    async def read(self, member: Member, wanted: KeptValue) -> bool:
        """Whether a member gets this version, or a newer one."""
        return bool(await member.do(lambda node: self._read(node, member, wanted)))

    async def forge(self, forger: Member, victim: Member, owner: Member) -> None:
        """Have the victim asked to store a version of the owner's value that somebody else signed."""
        unix_ms = round(forger.host.runtime.unix_now() * 1000)
        body = {
            "key": owner.host.identity.public_key,
            "salt": b"",
            "seq": unix_ms + round(2 * MAX_SKEW_S * 1000),  # above what the owner has by its clock
            "issued": unix_ms,
            "expires": unix_ms + round(self._members.config.records.ttl_s * 1000),
            "network": forger.host.network_id,
            "value": b"forged",
        }
        await forger.offer(victim, Store(seal(RecordKind.MUTABLE, pack(body), forger.host.identity)))

    async def _put(self, node: DHTNode, member: Member, value: bytes) -> None:
        signing = _Signing(node, member, content_key(value))
        self._note(signing, ANY_OWNER, await node.put(value), value)

    async def _write(self, node: DHTNode, member: Member, value: bytes) -> None:
        signing = _Signing(node, member, _own_key(member))
        self._note(signing, member.id, await node.put_mutable(value), value)

    async def _delete(self, node: DHTNode, member: Member) -> None:
        signing = _Signing(node, member, _own_key(member))
        if signing.is_owned:
            self._note(signing, member.id, await node.delete(signing.key), None)

    async def _read(self, node: DHTNode, member: Member, wanted: KeptValue) -> bool:
        client, history = (member.id, member.life), self._members.history
        with history.request(member.id, "get", self._members.find_timeout_s):
            if not wanted.is_mutable:
                value = await node.get(wanted.key)
                if value is not None:
                    history.note_value(client, wanted.key, 0, value)
                return value == wanted.value
            found = await node.get_mutable(wanted.key)
        if found is None:
            return False
        history.note_value(client, wanted.key, found.seq, found.value)
        return found.seq >= wanted.seq

    def _note(self, signing: _Signing, slot: Slot, report: PutReport, value: bytes | None) -> None:
        if not report.is_stored:
            return
        records = self._members.config.records
        ttl_s = records.max_ttl_s if value is None else records.ttl_s
        signed_ms = signing.earliest_ms()
        seq = max(signing.last_seq + 1, signed_ms) if slot else signed_ms + round(ttl_s * 1000)
        # By a storer's clock it may be over earlier, by as much as clocks are ever wrong.
        expires_at_s = signed_ms / 1000 + ttl_s - EPOCH_S - MAX_SKEW_S
        self._members.history.acknowledged.append(Acknowledged(signing.key, slot, seq, expires_at_s))
        self.kept[signing.key] = KeptValue(signing.key, slot, seq, value)

    def _next_value(self) -> bytes:
        self._count += 1
        return b"value %d" % self._count


class _Signing:
    """When a node signs a value: not before it is asked to, and not after it has answered."""

    def __init__(self, node: DHTNode, member: Member, key: Key) -> None:
        self.key = key
        self._member = member
        self._asked_ms = self._unix_ms()
        self._asked_at = self._now()
        owned = node._own_values.owned.get(key)  # as an onlooker, who sees what it remembers of the version before
        self.is_owned = owned is not None
        self.last_seq = 0 if owned is None else owned.seq

    def earliest_ms(self) -> int:
        """Asked when the node has answered: the lowest time it can have read off its clock, which may have been set."""
        return min(self._asked_ms, self._unix_ms() - round((self._now() - self._asked_at) * 1000))

    def _unix_ms(self) -> int:
        return round(self._member.host.runtime.unix_now() * 1000)

    def _now(self) -> float:
        return self._member.host.network.loop.time()


def _own_key(member: Member) -> Key:
    return mutable_key(member.host.identity.public_key, b"")

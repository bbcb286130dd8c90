"""Keeps one agent's record true: signs what it offers, stores it, and takes back what it offers no more."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from dht.agents.claim import claims_of
from dht.agents.record import MAX_DESCRIPTION_CHARS, AgentRecord, Reach
from dht.agents.renewal import Renewal, can_be_renewed, with_renewal
from dht.announcing import PublishReport
from dht.config import DHTConfig
from dht.kept_record import KeptRecord
from dht.node import DHTNode
from dht.publishing import Offer, Publishing
from dht.records import next_seq
from synapse_p2p.agent import AgentNode
from synapse_p2p.background import TaskScope, wait_at_most
from synapse_p2p.capability import ancestors
from synapse_p2p.exceptions import ConfigError, PeerUnavailable

logger = logging.getLogger(__name__)


Reports: TypeAlias = list[PublishReport]


@dataclass(frozen=True, slots=True)
class _Published:
    """What others find by now, or will in a moment: the record as it was signed, and as it was renewed since."""

    signed: bytes
    record: AgentRecord

    def says(self, record: AgentRecord) -> bool:
        """Whether it is what a record says, but for the number and the times."""
        now = self.record
        return now == replace(record, seq=now.seq, issued_ms=now.issued_ms, expires_ms=now.expires_ms)


class Publisher:
    """The record of one agent. Its `seq` grows for as long as the agent's process lives."""

    def __init__(self, agent: AgentNode, config: DHTConfig) -> None:
        self._agent = agent
        self._config = config
        self._seq = 0
        self._published: _Published | None = None
        self._revoked_key = b""  # the public one; the agent may have another when it is started again
        self._tombstone: tuple[bytes, AgentRecord] | None = None  # with which we revoked that
        self._left: AgentRecord | None = None  # by a life that ended without a word
        self.begin()

    def begin(self, folder: Path | None = None) -> None:
        """Nothing is published: the swarm starts, with this data directory. `reports` are those of the latest
        publication that has ended.
        """
        agent = self._agent
        self._kept = KeptRecord(folder)
        if self._published is not None:
            self._left = _both(self._published.record, self._left)
        self._published, self._take_back_at = None, 0.0
        if self._left is None or self._left.public_key != agent.identity.public_key:
            self._left = self._kept.load(
                agent.identity, network_id=agent.network_id, unix_ms=self._unix_ms(), config=self._config.records
            )
        if self._left is not None:
            self._seq = max(self._seq, self._left.seq)
        self.reports: tuple[PublishReport, ...] = ()
        self._publishing = Publishing(
            retry_min_s=self._config.join_retry_min_s, retry_max_s=self._config.join_retry_max_s
        )

    def check(self) -> None:
        """Raises ConfigError where no record can tell of what the agent offers now."""
        self._record_of(self._offer(self._agent.advertised_addresses)).seal(self._agent.identity)

    @property
    def is_revoked(self) -> bool:
        """Whether the agent's key is known to have been revoked; then nothing is published any more."""
        return self._revoked_key == self._agent.identity.public_key

    async def revoke(self, node: DHTNode) -> None:
        """Have a final tombstone kept wherever the record is, or would be.

        Called again, the same one is brought again. Raises ConfigError where the agent offers nothing, and
        PeerUnavailable where no other node keeps some part of it.
        """
        if not self.is_revoked or self._tombstone is None:
            record = self._record_of(self._offer_at(node)) if self._published is None else self._published.record
            if not record.capabilities:
                raise ConfigError("this agent offers nothing, so nobody keeps a record of it that could be revoked")
            tombstone = _both(record, self._left).revoked(issued_ms=self._unix_ms())
            self._tombstone = tombstone.seal(self._agent.identity), tombstone
            self._revoked_key, self._published = record.public_key, None
        reports = await self._bring_tombstone(node)
        # Where another process with this key was first, its tombstone is as good.
        missing = [report.capability for report in reports if not report.is_kept and not report.is_revoked]
        if missing:
            raise PeerUnavailable(
                f"no other node keeps the revocation under {', '.join(missing)} yet: call revoke() again once this "
                "node is connected"
            )

    async def keep_revoked(self, node: DHTNode) -> None:
        """Bring the tombstone again, before storers forget it, if we have made one."""
        await self._bring_tombstone(node)

    async def publish(self, node: DHTNode) -> None:
        """Store what the agent offers under each of its capabilities, and those above them."""
        if self.is_revoked:
            return
        offer = self._offer_at(node)

        async def store() -> Reports:
            await self._withdraw_dropped(node, offer)
            if self.is_revoked:
                return []  # meanwhile
            record = self._record_of(offer)
            envelope = record.seal(self._agent.identity)
            self._published = _Published(envelope, record)
            self._remember()
            return await _publish(node, envelope, record, record.indexed_names())

        await self._keep(node, offer, store)
        await self._take_back_left(node)

    async def renew(self, node: DHTNode) -> None:
        """Have what is stored live on: by a word of 195 bytes to each storer where nothing but the time is new, else by
        publishing.
        """
        if self.is_revoked:
            return
        offer, published = self._offer_at(node), self._published
        record = self._record_of(offer)
        if published is None or not published.says(record) or not can_be_renewed(published.signed):
            await self.publish(node)
            return
        renewal = Renewal.of(
            published.signed, seq=record.seq, issued_ms=record.issued_ms, expires_ms=record.expires_ms
        ).seal(self._agent.identity)
        self._published = _Published(published.signed, record)
        self._remember()
        await self._keep(node, offer, lambda: node.renew(renewal, with_renewal(published.signed, renewal), record))
        await self._take_back_left(node)

    async def publish_if_due(self, node: DHTNode) -> None:
        """The same where the offer has changed, or nobody keeps some part of it; and what an earlier life left is taken
        back now and then until somebody has heard of it.
        """
        now = self._agent.runtime.now()
        if self.is_revoked:
            return
        if self._publishing.is_due(self._offer_at(node), now):
            await self.publish(node)
        elif self._left is not None and now >= self._take_back_at:
            await self._take_back_left(node)

    async def withdraw_all(self, node: DHTNode) -> None:
        """Before we go: who does not hear of it in the time there is finds out by asking us."""
        published, self._published = self._published, None
        if published is not None:
            record = published.record
            async with TaskScope("withdraw") as scope:
                task = scope.spawn_awaited(self._withdraw(node, record, record.indexed_names()))
                await wait_at_most(task, self._config.leave_timeout_s)
                if task.done() and self._left is None:
                    self._kept.forget()

    @property
    def published(self) -> AgentRecord | None:
        """The record that others find by now, or will in a moment; None where none was sealed."""
        return None if self._published is None else self._published.record

    def _offer_at(self, node: DHTNode) -> Offer:
        # Where nobody gets through to us who dials back, one may all the same at the address that the user gave.
        return self._offer(node.addresses if self._agent.advertise is None else self._agent.advertised_addresses)

    def _offer(self, addresses: tuple[str, ...]) -> Offer:
        return Offer(addresses, claims_of(self._agent.capabilities))

    async def _bring_tombstone(self, node: DHTNode) -> Reports:
        if not self.is_revoked or self._tombstone is None:
            return []
        envelope, tombstone = self._tombstone
        return await _publish(node, envelope, tombstone, tombstone.indexed_names())

    async def _keep(self, node: DHTNode, offer: Offer, store: Callable[[], Awaitable[Reports]]) -> None:
        """Store what tells of this offer, and remember whether others can find all of it."""
        is_kept = False
        self._publishing.begin(offer)
        try:
            reports = await store()
            logger.debug("published: %s", reports)
            self.reports = tuple(reports)
            is_kept = all(report.is_kept for report in reports)
            if any(report.is_revoked for report in reports):
                await self._on_revoked(node)
        finally:
            self._publishing.end(offer, is_kept=is_kept, now=self._agent.runtime.now())

    async def _on_revoked(self, node: DHTNode) -> None:
        """Somebody with our key has revoked it: take back what was stored under names that this did not concern."""
        published = self._published
        if self.is_revoked or published is None:
            return
        self._revoked_key, self._published, self._tombstone = self._agent.identity.public_key, None, None
        logger.warning(
            "the key of agent %r was revoked for good: nobody finds it any more. Start it anew with another key",
            self._agent.name,
        )
        await self._withdraw(node, published.record, published.record.indexed_names())

    def _record_of(self, offer: Offer) -> AgentRecord:
        """What tells of this offer from now on. Raises ConfigError where it passes a bound of records."""
        agent = self._agent
        return AgentRecord(
            public_key=agent.identity.public_key,
            seq=self._next_seq(),
            issued_ms=self._unix_ms(),
            expires_ms=self._unix_ms() + round(self._config.records.lease_s * 1000),
            network_id=agent.network_id,
            addresses=offer.addresses,
            reach=Reach.DIRECT if offer.addresses else Reach.NONE,
            name=agent.name,
            role=agent.role,
            description=agent.description[:MAX_DESCRIPTION_CHARS],
            capabilities=offer.claims,
        )

    async def _withdraw_dropped(self, node: DHTNode, offer: Offer) -> None:
        """Take back what the last record said of capabilities that are not offered any more."""
        if self._published is None:
            return
        record = self._published.record
        await self._withdraw(node, record, _dropped(record, offer))

    async def _take_back_left(self, node: DHTNode) -> None:
        """Take back what an earlier life of this agent said and this one does not. Who keeps it is not known any more,
        so its tombstone goes where the record would.
        """
        left, now_ms = self._left, self._unix_ms()
        if left is None or self.is_revoked:
            return
        self._take_back_at = self._agent.runtime.now() + self._config.join_retry_max_s
        # Of what is offered now, and numbered at once: whatever comes to be offered later has a larger number.
        names = _dropped(left, self._offer_at(node))
        if names and left.expires_ms > now_ms:
            tombstone = left.withdrawn(seq=self._next_seq(), issued_ms=now_ms)
            reports = await _publish(node, tombstone.seal(self._agent.identity), tombstone, names)
            if not all(report.stored > report.kept_here for report in reports):
                return  # we are alone, or as good as that
        self._left = None
        self._remember()

    def _remember(self) -> None:
        """For the next life: what is published, as it was renewed last, and what is left of the life before."""
        record, identity = self.published, self._agent.identity
        if record is None:
            return
        try:
            envelope = _both(record, self._left).seal(identity)
        except ConfigError:  # more than one record has room for
            envelope = record.seal(identity)
        self._kept.save(envelope)

    async def _withdraw(self, node: DHTNode, published: AgentRecord, names: Iterable[str]) -> None:
        names = list(names)
        if not names:
            return
        tombstone = published.withdrawn(seq=self._next_seq(), issued_ms=self._unix_ms())
        envelope = tombstone.seal(self._agent.identity)
        async with TaskScope("withdraw") as scope:
            for task in [scope.spawn_awaited(node.withdraw(envelope, tombstone, name)) for name in names]:
                await task

    def _next_seq(self) -> int:
        self._seq = next_seq(self._seq, self._unix_ms())
        return self._seq

    def _unix_ms(self) -> int:
        return round(self._agent.runtime.unix_now() * 1000)


def _both(record: AgentRecord, left: AgentRecord | None) -> AgentRecord:
    """A record found wherever one of these two of an agent is; the first, where that is more than one may be."""
    if left is None or left.public_key != record.public_key:
        return record
    names = {claim.name for claim in record.capabilities}
    others = tuple(claim for claim in left.capabilities if claim.name not in names)
    with contextlib.suppress(ConfigError):
        return replace(record, capabilities=record.capabilities + others)
    return record


def _dropped(record: AgentRecord, offer: Offer) -> list[str]:
    """The names that a record is found under, and that are not offered any more."""
    still = {name for claim in offer.claims for name in (claim.name, *ancestors(claim.name))}
    return [name for name in record.indexed_names() if name not in still]


async def _publish(node: DHTNode, envelope: bytes, record: AgentRecord, names: Iterable[str]) -> Reports:
    """Under these of its names, at once."""
    async with TaskScope("publish") as scope:
        tasks = [scope.spawn_awaited(node.publish(envelope, record, name)) for name in names]
        return [await task for task in tasks]

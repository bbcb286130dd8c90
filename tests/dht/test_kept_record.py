"""What an agent said that was killed: kept on disk, and taken back by its next life where that says something else."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dht.agents.record import AgentRecord, CapabilityClaim, Reach
from dht.agents.renewal import Renewal, with_renewal
from dht.announcing import PublishReport
from dht.config import DHTConfig, RecordConfig
from dht.kept_record import FILE_NAME, KeptRecord
from dht.publisher import Publisher
from dht.records import Gone
from synapse_p2p.agent import AgentNode
from synapse_p2p.identity import Identity, network_id_of
from synapse_p2p.runtime import system_runtime
from tests.dht.test_swarm import World, seed_of, simulated

OWN = Identity.from_seed(b"\x01" * 32)
OTHER = Identity.from_seed(b"\x02" * 32)
NETWORK_ID = network_id_of("lab")
NOW_MS = 1_800_000_000_000
LEASE_MS = 900_000


def record_of(identity: Identity, **changes: object) -> AgentRecord:
    fields = {
        "public_key": identity.public_key,
        "seq": NOW_MS,
        "issued_ms": NOW_MS,
        "expires_ms": NOW_MS + LEASE_MS,
        "network_id": NETWORK_ID,
        "addresses": ("127.0.0.1:7",),
        "reach": Reach.DIRECT,
        "name": "Rita",
        "role": "reviewer",
        "description": "",
        "capabilities": (CapabilityClaim("python"), CapabilityClaim("nlp/summary")),
    }
    return AgentRecord(**{**fields, **changes})


RECORD = record_of(OWN)


def load(folder: Path, *, unix_ms: int = NOW_MS + 1000) -> AgentRecord | None:
    return KeptRecord(folder).load(OWN, network_id=NETWORK_ID, unix_ms=unix_ms, config=RecordConfig())


def test_what_was_kept_is_there_until_it_expires_or_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = KeptRecord(tmp_path)
    assert load(tmp_path) is None
    kept.save(RECORD.seal(OWN))

    assert load(tmp_path) == RECORD
    assert load(tmp_path, unix_ms=RECORD.expires_ms + 1) is None
    kept.forget()
    kept.forget()
    assert load(tmp_path) is None
    assert os.listdir(tmp_path) == []
    assert caplog.records == []


def test_a_renewed_one_lives_as_long_as_its_renewal(tmp_path: Path):
    signed = RECORD.seal(OWN)
    renewed_at_ms = NOW_MS + 600_000
    renewal = Renewal.of(signed, seq=renewed_at_ms, issued_ms=renewed_at_ms, expires_ms=renewed_at_ms + LEASE_MS).seal(
        OWN
    )
    KeptRecord(tmp_path).save(with_renewal(signed, renewal))

    record = load(tmp_path, unix_ms=RECORD.expires_ms + 1)

    assert record is not None
    assert (record.seq, record.expires_ms) == (renewed_at_ms, renewed_at_ms + LEASE_MS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        RECORD.seal(OWN)[:-1],
        RECORD.seal(OWN)[:60] + b"!" + RECORD.seal(OWN)[61:],
        record_of(OWN, network_id=network_id_of("other")).seal(OWN),
        record_of(OWN, issued_ms=NOW_MS + 10**9, expires_ms=NOW_MS + 10**9 + LEASE_MS).seal(OWN),
        bytes(100_000),
    ],
    ids=["empty", "no-msgpack", "cut", "changed", "other-network", "from-the-future", "large"],
)
def test_a_file_that_cannot_be_used_costs_a_warning_and_is_written_anew(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / FILE_NAME
    path.write_bytes(content)

    assert load(tmp_path) is None
    [warning] = caplog.records
    assert str(path) in warning.getMessage()
    KeptRecord(tmp_path).save(RECORD.seal(OWN))
    assert load(tmp_path) == RECORD


def test_that_of_another_key_is_none_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / FILE_NAME).write_bytes(record_of(OTHER).seal(OTHER))

    assert load(tmp_path) is None
    assert caplog.records == []


def test_a_folder_where_the_file_belongs_costs_warnings_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / FILE_NAME / "inside").mkdir(parents=True)
    kept = KeptRecord(tmp_path)

    kept.save(RECORD.seal(OWN))
    assert load(tmp_path) is None
    kept.forget()

    assert len(caplog.records) == 3
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_without_a_folder_nothing_is_kept():
    kept = KeptRecord(None)

    kept.save(RECORD.seal(OWN))
    kept.forget()

    assert kept.load(OWN, network_id=NETWORK_ID, unix_ms=NOW_MS, config=RecordConfig()) is None


# In a swarm


@simulated
@pytest.mark.parametrize("after_s", [30, 1500])  # the second: when only renewals have kept it alive
async def test_a_killed_agent_that_comes_back_with_other_capabilities_is_not_found_by_the_old_ones(
    world: World, tmp_path: Path, after_s: float
):
    first = await world.start(world.agent("first"))
    killed = await world.start(
        world.keeping_agent("rita", "python", "nlp/summary"), bootstrap=[seed_of(first)], data_dir=tmp_path
    )
    await asyncio.sleep(after_s)
    await killed.stop(grace=0)  # so it says nothing to anybody
    old_names = [len(await first.find(name, probe=False)) for name in ("python", "nlp/", "nlp/summary")]

    back = await world.start(
        world.keeping_agent("rita", "python", "vision"), bootstrap=[seed_of(first)], data_dir=tmp_path
    )
    names = ("nlp/", "nlp/summary", "python", "vision")  # who has met the newer version takes no older one for true
    new_names = [len(await first.find(name, probe=False)) for name in names]
    await back.stop()

    assert old_names == [1, 1, 1]
    assert new_names == [0, 0, 1, 1]
    assert not (tmp_path / FILE_NAME).exists()  # it has said goodbye, so nothing is left behind


@simulated
async def test_one_that_comes_back_in_the_same_process_needs_no_file_for_it(world: World):
    first = await world.start(world.agent("first"))
    agent = world.agent("rita", "python", "nlp")
    swarm = await world.start(agent, bootstrap=[seed_of(first)])
    await swarm.stop(grace=0)
    await agent.set_capabilities(["python"])

    await swarm.start()

    # In this order: who has met the newer version takes no older one for true.
    assert [len(await first.find(name, probe=False)) for name in ("nlp", "python")] == [0, 1]


@simulated
async def test_what_is_left_behind_is_remembered_until_somebody_has_heard_that_it_is_over(world: World, tmp_path: Path):
    first = await world.start(world.agent("first"))
    seeds = [seed_of(first)]
    await (await world.start(world.keeping_agent("rita", "nlp"), bootstrap=seeds, data_dir=tmp_path)).stop(grace=0)
    for name in ("known.peers", "records.db"):
        (tmp_path / name).unlink()
    alone = await world.start(world.keeping_agent("rita", "python"), data_dir=tmp_path)
    await alone.stop(grace=0)
    (tmp_path / "records.db").unlink()

    await world.start(world.keeping_agent("rita", "python"), bootstrap=seeds, data_dir=tmp_path)

    # In this order: who has met the newer version takes no older one for true.
    assert [len(await first.find(name, probe=False)) for name in ("nlp", "python")] == [0, 1]


@simulated
@pytest.mark.parametrize("after_s", [0.02 * step for step in range(3, 12)])
async def test_what_is_offered_again_while_it_is_taken_back_is_found(world: World, tmp_path: Path, after_s: float):
    first = await world.start(world.agent("first"))
    seeds = [seed_of(first)]
    await (await world.start(world.keeping_agent("rita", "nlp"), bootstrap=seeds, data_dir=tmp_path)).stop(grace=0)
    agent = world.keeping_agent("rita", "python")
    starting = asyncio.ensure_future(world.start(agent, bootstrap=seeds, data_dir=tmp_path))

    await asyncio.sleep(after_s)
    await agent.set_capabilities(["python", "nlp"])
    await starting
    await asyncio.sleep(5)

    assert [len(await first.find(name, probe=False)) for name in ("nlp", "python")] == [1, 1]


class Storers:
    """What the nodes of a swarm keep, where some names are not taken: as by nodes that are busy."""

    addresses = ("127.0.0.1:7",)

    def __init__(self) -> None:
        self.kept: dict[str, AgentRecord] = {}
        self.refused: set[str] = set()

    async def publish(self, envelope: bytes, record: AgentRecord, name: str) -> PublishReport:
        is_kept = name not in self.refused and (name not in self.kept or record.seq > self.kept[name].seq)
        if is_kept:
            self.kept[name] = record
        return PublishReport(name, asked=3, stored=2 * is_kept, refusals=())

    async def renew(self, renewal: bytes, envelope: bytes, record: AgentRecord) -> list[PublishReport]:
        return [await self.publish(envelope, record, name) for name in record.indexed_names()]

    def gone(self) -> dict[str, Gone | None]:
        return {name: record.gone for name, record in sorted(self.kept.items())}


def publisher(folder: Path, *capabilities: str, unix_now: Callable[[], float] = time.time) -> Publisher:
    runtime = dataclasses.replace(system_runtime(), unix_now=unix_now)
    agent = AgentNode(name="Rita", role="worker", capabilities=list(capabilities), identity=OWN, runtime=runtime)
    made = Publisher(agent, DHTConfig())
    made.begin(folder)
    return made


async def test_who_was_busy_hears_later_and_a_life_that_ends_before_leaves_both_to_the_next(tmp_path: Path):
    storers = Storers()
    await publisher(tmp_path, "python", "nlp").publish(storers)
    second = publisher(tmp_path, "python", "vision")
    storers.refused = {"nlp"}
    await second.publish(storers)
    assert storers.gone() == {"nlp": None, "python": None, "vision": None}

    third = publisher(tmp_path, "python")
    await third.publish(storers)
    assert storers.gone() == {"nlp": None, "python": None, "vision": Gone.NOW}
    storers.refused = set()
    await third._take_back_left(storers)

    assert storers.gone() == {"nlp": Gone.NOW, "python": None, "vision": Gone.NOW}
    assert publisher(tmp_path, "python")._left.indexed_names() == ("python",)


async def test_what_was_renewed_while_something_was_left_is_known_to_the_next_life_as_long_as_to_storers(
    tmp_path: Path,
):
    storers, clock = Storers(), [NOW_MS / 1000]
    await publisher(tmp_path, "python", "nlp", unix_now=lambda: clock[0]).publish(storers)
    second = publisher(tmp_path, "python", "vision", unix_now=lambda: clock[0])
    storers.refused = {"nlp"}
    await second.publish(storers)
    storers.refused = set()
    clock[0] += 450
    await second.renew(storers)
    clock[0] += 600  # the record as it was signed is over, the renewed one is not

    await publisher(tmp_path, "python", unix_now=lambda: clock[0]).publish(storers)

    assert storers.gone() == {"nlp": Gone.NOW, "python": None, "vision": Gone.NOW}


async def test_a_revocation_is_of_what_an_earlier_life_left_as_well(tmp_path: Path):
    storers = Storers()
    await publisher(tmp_path, "python", "nlp").publish(storers)
    second = publisher(tmp_path, "python")
    storers.refused = {"nlp"}
    await second.publish(storers)
    storers.refused = set()

    await second.revoke(storers)

    assert storers.gone() == {"nlp": Gone.FINAL, "python": Gone.FINAL}

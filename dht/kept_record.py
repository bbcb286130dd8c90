"""The record that an agent published last, kept in its data directory: a life that ended without a word left it behind.

The file is the record as storers have it, signed, so it needs no checksum of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dht.agents.record import AgentRecord, read_agent_record
from dht.config import MAX_AGENT_RECORD_SIZE_BYTES, RecordConfig
from dht.exceptions import RecordRefused
from dht.records import Refusal
from synapse_p2p.identity import Identity
from synapse_p2p.kept_file import read_file, replace_file

logger = logging.getLogger(__name__)

FILE_NAME = "agent.record"


class KeptRecord:
    """What is in that file. Without a folder nothing is kept. A file that cannot be used or written costs a warning."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / FILE_NAME

    def load(self, identity: Identity, *, network_id: bytes, unix_ms: int, config: RecordConfig) -> AgentRecord | None:
        """The record in the file, of this agent and still alive; None where there is no such."""
        if self._path is None:
            return None
        try:
            envelope = read_file(self._path, max_bytes=MAX_AGENT_RECORD_SIZE_BYTES)
            record = read_agent_record(envelope, network_id=network_id, unix_ms=unix_ms, config=config)
        except FileNotFoundError:
            return None
        except RecordRefused as error:
            if error.reason != Refusal.EXPIRED:
                logger.warning("the record in %s is not used: %s. It is written anew", self._path, error)
            return None
        except OSError as error:
            logger.warning("the record in %s cannot be read: %s", self._path, error.strerror or error)
            return None
        return record if record.public_key == identity.public_key and record.gone is None else None

    def save(self, envelope: bytes) -> None:
        """Keep this one in place of the last. Cost: it waits for the disk, some milliseconds."""
        if self._path is not None:
            try:
                replace_file(self._path, envelope)
            except OSError as error:
                logger.warning(
                    "what this agent offers is not remembered in %s: %s. Make room there, or let this user write in "
                    "its folder",
                    self._path,
                    error.strerror or error,
                )

    def forget(self) -> None:
        """Nothing is left behind any more."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s cannot be removed: %s", self._path, error.strerror or error)

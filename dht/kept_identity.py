"""Who a swarm's node is from one start to the next: the identity in its data directory, held while it runs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from synapse_p2p.data_dir import DataDir
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.identity import NodeID
from synapse_p2p.keyfile import KeyFault, KeyFileError
from synapse_p2p.server import Server

logger = logging.getLogger(__name__)


class KeptIdentity:
    """Gives a server the identity of a data directory, from `take` to `release`, and the same at each start.

    With `folder` it is that one; without, the user's own for this network and name. Where no key can be kept the server
    stays who it is, at each start too.
    """

    def __init__(self, server: Server, *, name: str, folder: str | os.PathLike[str] | None) -> None:
        self._server = server
        self._name = name
        self._is_explicit = folder is not None
        self._folder = None if folder is None else Path(folder)
        self._is_ephemeral = False
        self._data_dir: DataDir | None = None
        self._added_operators: set[NodeID] = set()

    @property
    def folder(self) -> Path | None:
        """Where the key is while it is held."""
        return None if self._data_dir is None else self._data_dir.path

    async def take(self) -> None:
        """Be who the data directory says. Taken already, it does nothing. Raises KeyFileError, and ConfigError.

        It reads and writes files on the loop: some milliseconds, before anything of this swarm runs.
        """
        server = self._server
        if self._data_dir is not None or self._is_ephemeral:
            return
        if server.listening_addresses:
            self._stay_who_peers_know()
            return
        data_dir = self._claim()
        if data_dir is None:
            self._is_ephemeral = True
            return
        self._data_dir, self._folder = data_dir, data_dir.path
        self._added_operators = {data_dir.operator.node_id} - server.operators
        server.operators |= self._added_operators
        if server.identity != data_dir.identity:
            await server.stop(grace=0)  # it may have sessions of its own from before, which prove another identity
            server.become(identity=data_dir.identity)
        logger.info("node %s keeps its key in %s", server.identity.node_id.hex(), data_dir.path)

    def release(self) -> None:
        """Let another process have it; only when the server runs no more. Released already, it does nothing."""
        data_dir, self._data_dir = self._data_dir, None
        if data_dir is not None:
            self._server.operators -= self._added_operators
            data_dir.close()

    def _claim(self) -> DataDir | None:
        token_bytes = self._server.runtime.token_bytes
        if self._folder is not None:
            try:
                return DataDir.open(self._folder, token_bytes=token_bytes)
            except KeyFileError as error:
                if self._is_explicit or error.fault is not KeyFault.IN_USE:
                    raise
                # Somebody else came between two starts of ours: one key is one node, so we are another now.
        return DataDir.claim(network=self._server.network, name=self._name, token_bytes=token_bytes)

    def _stay_who_peers_know(self) -> None:
        """An agent that listens already has told its peers who it is."""
        if self._is_explicit:
            raise ConfigError(
                f"the agent listens already, so data_dir={str(self._folder)!r} comes too late: let the swarm start it, "
                "or give it identity=load_identity(...)"
            )
        logger.info("the agent listens already: it stays who it is, and its key is not kept")
        self._is_ephemeral = True

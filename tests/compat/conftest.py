"""Earlier releases as published, for cross calls over real TCP. What cannot be installed fails; nothing is skipped."""

from __future__ import annotations

import ast
import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.releases import RELEASES, python_of

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Release:
    """An installed release."""

    name: str
    python: Path

    async def run(self, script: str, given: Any, *args: str) -> Any:
        """The literal that one of the scripts prints when it reads this one."""
        process = await asyncio.create_subprocess_exec(
            self.python, "-I", SCRIPTS / script, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        printed, _ = await process.communicate(repr(given).encode())
        assert process.returncode == 0
        return ast.literal_eval(printed.decode())

    async def call(self, port: int, endpoint: str, /, *args: Any, **kwargs: Any) -> Any:
        """How one call by the release's own client ends."""
        (outcome,) = await self.run("old_client.py", [(endpoint, args, kwargs)], str(port))
        return outcome


@pytest.fixture(scope="session", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Release:
    return Release(request.param, python_of(request.param))


@pytest.fixture(scope="session")
def old_port(release: Release) -> Iterator[int]:
    """The port of a server of the release."""
    with subprocess.Popen(
        [release.python, "-I", SCRIPTS / "old_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()
        process.terminate()  # a handler that hangs keeps it

"""The programs of docs/how-to/deploy.md, each "machine" a network namespace with an address of its own.

A bridge joins them, so that a link can be cut; nothing leaves the namespaces.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md"
PROGRAM = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.DOTALL)
NAMES = ("alpha", "beta", "gamma")
SEEDS = "10.83.0.1:9999 10.83.0.2:9999 10.83.0.3:9999"


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=20)


def can_make_namespaces() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"synapse-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, timeout=20, check=False).returncode != 0:
        return False
    ip("netns", "del", name)
    return True


class Machines:
    """Three namespaces on a bridge, in a fourth that stands for the switch."""

    def __init__(self, folder: Path) -> None:
        self._tag = f"syn{secrets.token_hex(3)}"
        self._switch = f"{self._tag}-switch"
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}
        key = folder / "network.key"
        key.write_text(secrets.token_hex(32) + "\n", encoding="utf-8")
        self._environment |= {"SEEDS": SEEDS, "NETWORK_KEY_FILE": str(key)}

    def build(self) -> None:
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "name", "bridge0", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge0", "up")
        for number, name in enumerate(NAMES, 1):
            ip("netns", "add", self._space(name))
            ip("-n", self._switch, "link", "add", name, "type", "veth", "peer", "eth0", "netns", self._space(name))
            ip("-n", self._switch, "link", "set", name, "master", "bridge0", "up")
            ip("-n", self._space(name), "address", "add", f"10.83.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", self._space(name), "link", "set", device, "up")

    def remove(self) -> None:
        for space in (*map(self._space, NAMES), self._switch):
            ip("netns", "del", space, check=False)

    def cut(self, name: str, *, is_up: bool) -> None:
        ip("-n", self._switch, "link", "set", name, "up" if is_up else "down")

    @contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[str]]:
        state = self._folder / name
        state.mkdir(mode=0o700, exist_ok=True)
        environment = self._environment | {"AGENT_NAME": name, "STATE_DIRECTORY": str(state)}
        with (self._folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                self._command(name, "worker.py"), stdout=log, stderr=log, text=True, env=environment
            )
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(20)

    def look(self, name: str) -> list[str]:
        """What `look.py` prints there; nothing where it fails."""
        ended = subprocess.run(
            self._command(name, "look.py"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._environment,
        )
        return ended.stdout.splitlines()

    def look_until(self, name: str, expected: list[str], *, within_s: float) -> None:
        until = time.monotonic() + within_s
        while (seen := self.look(name)) != expected:
            assert time.monotonic() < until, (seen, self.logs())

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def logs(self) -> str:
        return "\n".join(f"{name}: {self.log(name)}" for name in NAMES)

    def _space(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _command(self, name: str, program: str) -> list[str]:
        return ["ip", "netns", "exec", self._space(name), sys.executable, "-u", str(self._folder / program)]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if not can_make_namespaces():
        pytest.skip("making network namespaces needs Linux, root and iproute2")
    programs = dict(PROGRAM.findall(PAGE.read_text(encoding="utf-8")))
    for name in ("worker.py", "look.py"):
        (tmp_path / name).write_text(programs[name], encoding="utf-8")
    machines = Machines(tmp_path)
    try:
        machines.build()
        yield machines
    finally:
        machines.remove()


def test_three_machines_are_a_swarm_that_goes_on_without_one(machines: Machines):
    with machines.running("alpha"), machines.running("beta"):
        with machines.running("gamma") as gamma:
            machines.look_until("alpha", ["alpha beta gamma", "heard hello"], within_s=30)
            assert "10.83.0.3:9999" in machines.log("gamma")  # as others see it, and dial it

        assert gamma.returncode == 0  # it went in good order
        assert machines.look("beta") == ["alpha beta", "heard hello"]


@pytest.mark.gates
def test_a_machine_that_loses_its_network_and_one_that_starts_again_are_back(machines: Machines):
    with machines.running("alpha") as alpha, machines.running("beta"):
        with machines.running("gamma"):
            machines.look_until("alpha", ["alpha beta gamma", "heard hello"], within_s=30)
        machines.cut("alpha", is_up=False)  # and nobody is told
        machines.look_until("beta", ["beta", "heard hello"], within_s=30)
        machines.cut("alpha", is_up=True)
        with machines.running("gamma"):
            machines.look_until("gamma", ["alpha beta gamma", "heard hello"], within_s=40)
        assert alpha.poll() is None
        ids = re.findall(r"\b[0-9a-f]{64}\b", machines.log("gamma"))
        assert len(ids) > 1
        assert len(set(ids)) == 1  # it came back as the same node


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path):
    unit = tmp_path / "worker.service"
    text = re.findall(r"```ini\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    unit.write_text(text.replace("/opt/worker/venv/bin/python", sys.executable), encoding="utf-8")

    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )

    assert "worker.service" not in ended.stderr

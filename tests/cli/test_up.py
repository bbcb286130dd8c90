"""Which agent `up` runs, and what it says when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from synapse_p2p import AgentNode
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.up import load_agent
from tests.cli.typing_commands import AGENTS, typed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "broken.py").write_text("import a_module_that_is_missing", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    for name in ("my_agents", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_an_agent_is_an_attribute_or_what_a_function_returns(folder: Path):
    assert isinstance(load_agent("my_agents:rita"), AgentNode)
    assert load_agent("my_agents:olga").role == "coder"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("my_agents", "is not module:attribute"),
        (":rita", "is not module:attribute"),
        ("my_agents.py:rita", "write my_agents:rita"),
        ("./my_agents:rita", "write my_agents:rita"),
        ("elsewhere:rita", "there is no module 'elsewhere' in"),
        ("my_agents:rti", "has no 'rti'; its agents are rita"),
        ("my_agents:other", "is of type int, and no AgentNode"),
        ("my_agents:dataclass", "is of type function, and no AgentNode"),
    ],
)
def test_a_place_where_no_agent_is_names_what_is_wrong(folder: Path, place: str, said: str):
    with pytest.raises(CommandError, match=said) as error:
        load_agent(place)

    assert error.value.code is ExitCode.USAGE


def test_a_module_of_the_user_s_that_fails_shows_where(folder: Path):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        load_agent("broken:agent")


def test_a_port_in_use_and_a_missing_key_file_are_usage(folder: Path, taken_port: int):
    taken = typed("up", "--listen", f"127.0.0.1:{taken_port}", "--data-dir", str(folder / "data"))
    keyless = typed("up", "--network-key-file", str(folder / "no.key"), "--data-dir", str(folder / "data"))

    assert taken.code == 2
    assert "address already in use" in taken.err.lower()
    assert keyless.code == 2
    assert str(folder / "no.key") in keyless.err


@pytest.fixture
def taken_port() -> object:
    """A port that somebody else listens on."""
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]

"""Where keys are by default, and which of several nodes gets which."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_p2p import data_dir as data_dir_module
from synapse_p2p.data_dir import MAX_NAME_CHARS, MAX_SLOTS, DataDir, folder_name, state_folder
from synapse_p2p.exceptions import ConfigError
from synapse_p2p.keyfile import KeyFault, KeyFileError, read_identity

ROOT = Path(__file__).parents[1]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state folder, empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def claim(name: str = "reviewer", network: str = "lab") -> DataDir:
    claimed = DataDir.claim(network=network, name=name)
    assert claimed is not None
    return claimed


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# One folder


def test_a_folder_has_the_nodes_key_and_an_operators_that_others_read_meanwhile(tmp_path: Path):
    with_keys = DataDir.open(tmp_path / "mine")

    assert with_keys.path == tmp_path / "mine"
    assert read_identity(tmp_path / "mine" / "node.key") == with_keys.identity
    assert read_identity(tmp_path / "mine" / "operator.key") == with_keys.operator
    assert with_keys.operator != with_keys.identity
    if os.name == "posix":
        assert (tmp_path / "mine" / "operator.key").stat().st_mode & 0o777 == 0o600
    with_keys.close()


def test_a_folder_keeps_its_keys_and_is_held_until_it_is_closed(tmp_path: Path):
    first = DataDir.open(tmp_path)

    with pytest.raises(ConfigError, match="in use"):
        DataDir.open(tmp_path)
    first.close()
    first.close()
    again = DataDir.open(tmp_path)

    assert (again.identity, again.operator) == (first.identity, first.operator)
    again.close()


def test_a_folder_whose_operator_key_is_damaged_is_refused_and_not_held(tmp_path: Path):
    DataDir.open(tmp_path).close()
    (tmp_path / "operator.key").write_text("synapse-key-1 nonsense")

    for _ in range(2):
        with pytest.raises(KeyFileError, match=r"operator\.key is damaged"):
            DataDir.open(tmp_path)


# The user's own


def test_by_default_a_key_is_in_the_users_state_folder_by_network_and_name(state: Path):
    claimed = claim("reviewer", "lab")

    assert claimed.path == state / "synapse-p2p" / "lab" / "reviewer"
    claimed.close()


def test_the_next_of_one_name_takes_the_next_free_slot_and_says_so_once(state: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    first = claim()
    second, third = claim(), claim()

    said = [record.getMessage() for record in caplog.records]
    second.close()
    again = claim()

    folder = state / "synapse-p2p" / "lab"
    assert [each.path.name for each in (first, second, third, again)] == [
        "reviewer",
        "reviewer.2",
        "reviewer.3",
        "reviewer.2",
    ]
    assert len({each.identity for each in (first, second, third)}) == 3
    assert again.identity == second.identity
    assert [str(folder / "reviewer.2") in line for line in said] == [True, False]
    for each in (first, third, again):
        each.close()


def test_processes_that_start_at_once_get_a_slot_each(state: Path):
    program = (
        "import sys; from synapse_p2p.data_dir import DataDir; sys.stdin.readline();"
        "claimed = DataDir.claim(network='lab', name='reviewer');"
        "print(claimed.path.name, claimed.identity.node_id.hex(), flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    try:
        for each in crowd:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        said = [each.stdout.readline().split() for each in crowd if each.stdout is not None]
    finally:
        for each in crowd:
            each.kill()
            each.communicate()

    assert sorted(name for name, _ in said) == ["reviewer", "reviewer.2", "reviewer.3"]
    assert len({node_id for _, node_id in said}) == 3


def test_when_all_slots_are_taken_a_node_has_a_key_for_its_life_alone(
    state: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(data_dir_module, "MAX_SLOTS", 3)
    held = [claim() for _ in range(3)]

    assert DataDir.claim(network="lab", name="reviewer") is None

    assert len(warnings_in(caplog)) == 1
    assert "3 nodes of this name run already" in caplog.text
    assert MAX_SLOTS > 3
    for each in held:
        each.close()


@pytest.mark.parametrize(
    ("state_home", "home", "reason"),
    [
        ("", "/nowhere/at/all", "there is no home folder"),
        ("relative/path", "/nowhere/at/all", "there is no home folder"),
        ("/proc/self/nothing", "/", "cannot be used"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can write")
def test_without_a_home_that_can_be_written_one_warning_says_what_to_do(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, state_home: str, home: str, reason: str
):
    monkeypatch.setenv("XDG_STATE_HOME", state_home)
    monkeypatch.setenv("HOME", home)

    assert DataDir.claim(network="lab", name="reviewer") is None

    [said] = warnings_in(caplog)
    assert "a new id at each start" in said
    assert reason in said
    assert said.endswith("Give it data_dir=")


def test_a_damaged_key_is_an_error_and_not_a_reason_to_become_somebody_else(state: Path):
    claimed = claim()
    claimed.close()
    (claimed.path / "node.key").write_text("synapse-key-1 nonsense")

    with pytest.raises(KeyFileError, match="damaged") as refused:
        claim()

    assert refused.value.fault is KeyFault.DAMAGED


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "/home/me/.local/state"),
        ("linux", {"XDG_STATE_HOME": "/state"}, "/state"),
        ("linux", {"XDG_STATE_HOME": ""}, "/home/me/.local/state"),
        ("linux", {"XDG_STATE_HOME": "state"}, "/home/me/.local/state"),
        ("darwin", {}, "/home/me/Library/Application Support"),
        ("darwin", {"XDG_STATE_HOME": "/state"}, "/state"),
        ("win32", {"LOCALAPPDATA": "C:\\Users\\me\\AppData\\Local"}, "C:\\Users\\me\\AppData\\Local"),
        ("win32", {}, None),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="paths are those of Unix")
def test_each_system_has_its_own_place_for_state(platform: str, environment: dict[str, str], expected: str | None):
    assert state_folder(platform, environment, "/home/me") == expected


def test_without_a_home_there_is_no_place():
    assert state_folder("linux", {}, "") is None
    assert state_folder("darwin", {}, "~") is None


# Names of folders


@pytest.mark.parametrize("name", ["reviewer", "a", "7", "code-review_2", "x" * MAX_NAME_CHARS])
def test_a_name_that_is_safe_on_every_system_stays_as_it_is(name: str):
    assert folder_name(name) == name


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("", "unnamed"),
        ("Reviewer", "reviewer"),
        ("reviewer.2", "reviewer-2"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "unnamed"),
        ("con", "con"),
        ("COM1", "com1"),
        ("-rf", "rf"),
        ("a/b\\c:d", "a-b-c-d"),
        ("caf\u00e9", "caf"),
        ("nul\0", "nul"),
        ("\ud800", "unnamed"),
        ("x" * 5_000, "x" * MAX_NAME_CHARS),
    ],
)
def test_a_name_that_is_not_gets_a_hash_and_stays_readable(name: str, readable: str):
    made, _, digest = folder_name(name).partition("+")

    assert made == readable
    assert len(digest) == 12


NAMES = st.text(max_size=70) | st.from_regex(r"[a-zA-Z0-9.+_-]{0,12}", fullmatch=True)


@given(NAMES, NAMES)
def test_two_names_never_share_a_folder_even_where_capitals_and_accents_count_for_nothing(a: str, b: str):
    made = [unicodedata.normalize("NFKD", folder_name(name)).casefold() for name in (a, b)]

    assert (made[0] == made[1]) == (a == b)


@given(NAMES)
def test_a_folders_name_is_one_safe_part_of_a_path_and_no_slot_of_another(name: str):
    made = folder_name(name)

    assert Path(made).name == made
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-+")
    assert 0 < len(made) <= MAX_NAME_CHARS + 13
    assert not made.startswith(("-", "."))
    assert folder_name(made) == made if "+" not in made else folder_name(made) != made

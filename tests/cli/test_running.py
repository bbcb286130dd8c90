"""The file that a node leaves: read back whole, and never believed where it is something else."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_p2p.apps.cli.running import (
    FILE_NAME,
    RunningNode,
    decoded,
    encoded,
    is_alive,
    leave,
    newest_first,
    read,
    take_away,
)

NODE = RunningNode(7, "ab" * 32, "Rita", "lab", "127.0.0.1:9999", "", 1_000, "/srv/rita")
nodes = st.builds(
    RunningNode,
    pid=st.integers(1, 2**31),
    id=st.text(),
    name=st.text(),
    network=st.text(),
    address=st.text(),
    network_key_file=st.text(),
    started_unix_ms=st.integers(0, 2**60),
    folder=st.text(),
)


@settings(max_examples=30)
@given(nodes)
def test_what_is_written_is_read_back(node: RunningNode):
    assert decoded(encoded(node), node.folder) == node


@settings(max_examples=30)
@given(st.text() | st.builds(json.dumps, st.recursive(st.none() | st.integers() | st.text(), st.lists)))
def test_any_other_text_is_no_node(text: str):
    assert decoded(text, "/srv") is None


@pytest.mark.parametrize("change", [{"pid": "7"}, {"pid": True}, {"id": None}, {"started_unix_ms": 1.5}])
def test_a_value_of_another_kind_is_no_node(change: dict[str, object]):
    assert decoded(json.dumps({**json.loads(encoded(NODE)), **change}), "/srv") is None


def test_keys_of_later_releases_are_ignored():
    assert decoded(json.dumps({**json.loads(encoded(NODE)), "colour": "red"}), NODE.folder) == NODE


def test_the_newest_comes_first():
    older = dataclasses.replace(NODE, started_unix_ms=999, folder="/a")
    same = dataclasses.replace(NODE, folder="/a")

    assert newest_first([older, NODE, same]) == [same, NODE, older]


def test_the_file_is_private_and_goes_with_its_node_alone(tmp_path: Path):
    node = dataclasses.replace(NODE, folder=str(tmp_path))
    assert read(tmp_path) is None

    leave(node)
    leave(dataclasses.replace(node, pid=8))

    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600 or sys.platform == "win32"
    take_away(node)  # another process has left its own since
    assert read(tmp_path) == dataclasses.replace(node, pid=8)
    take_away(dataclasses.replace(node, pid=8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there it cannot be asked")
def test_a_process_that_has_ended_is_not_alive():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()

    assert is_alive(os.getpid())
    assert not is_alive(ended.pid)
    assert not is_alive(0)

"""What a swarm says on the screen."""

from __future__ import annotations

import ast
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.introduction import find_command, introduce
from dht.results import SwarmMode, SwarmStatus

FIRST_NODE = SwarmStatus(
    id=bytes(32),
    mode=SwarmMode.NODE,
    network="",
    listening=("127.0.0.1:9999",),
    advertised=("127.0.0.1:9999",),
    seeds_joined=0,
    seeds_tried=0,
    contacts=0,
    sessions=0,
    records_held=0,
    capabilities=("code-review", "python"),
)


def test_a_first_node_on_loopback_says_who_and_where_it_is_and_how_to_find_it():
    lines = introduce(FIRST_NODE).splitlines()

    assert lines[:5] == [
        "id          " + "00" * 32,
        "listening   127.0.0.1:9999",
        "advertised  127.0.0.1:9999",
        "joined      no seeds: a first node",
        "find it from another terminal with:",
    ]
    assert len(lines) == 6
    assert lines[5].startswith('  python -c "')
    assert "bootstrap=['127.0.0.1:9999']" in lines[5]
    assert "find('code-review')" in lines[5]


def test_a_node_that_others_reach_says_that_the_swarm_is_open():
    status = replace(FIRST_NODE, listening=("0.0.0.0:9999",), advertised=(), seeds_joined=1, seeds_tried=3)

    text = introduce(status)

    assert "open swarm: anyone who reaches this port may ask" in text
    assert "advertised  not yet known" in text
    assert "joined      1 of 3 seeds" in text
    assert "bootstrap=['127.0.0.1:9999']" in text


def test_a_swarm_with_a_key_is_not_open_and_its_command_asks_for_the_key():
    status = replace(FIRST_NODE, network="lab", listening=("0.0.0.0:9999",), advertised=())

    text = introduce(status, has_network_key=True)

    assert "open swarm" not in text
    assert "find it from another terminal with (it asks for the network key):" in text
    _, _, code = shlex.split(text.splitlines()[-1])
    [swarm] = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and is_swarm(node)]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in swarm.keywords}
    assert given["network"] == "'lab'"
    assert given["network_key"].startswith("bytes.fromhex(getpass.getpass(")
    assert "import asyncio, getpass;" in code


def is_swarm(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "Swarm"


def test_a_node_whose_key_is_kept_says_where():
    lines = introduce(FIRST_NODE, key_folder="/home/me/.local/state/synapse-p2p/lab/reviewer").splitlines()

    assert lines[4] == "key kept in /home/me/.local/state/synapse-p2p/lab/reviewer"
    assert len(lines) == 7


def test_a_client_has_no_address_and_so_no_command():
    text = introduce(replace(FIRST_NODE, mode=SwarmMode.CLIENT, listening=(), advertised=(), seeds_tried=1))

    assert text.count("nowhere (a client)") == 2
    assert "python -c" not in text


@pytest.mark.parametrize(
    ("listening", "seed"), [("[::]:9999", "[::1]:9999"), ("[::1]:9999", "[::1]:9999"), ("10.0.0.5:1", "10.0.0.5:1")]
)
def test_the_command_names_an_address_that_can_be_dialed(listening: str, seed: str):
    status = replace(FIRST_NODE, listening=(listening,), advertised=())

    assert f"bootstrap=['{seed}']" in introduce(status)


@given(st.text(max_size=30))
def test_a_network_of_any_name_comes_through_a_shells_double_quotes(network: str):
    command = find_command(replace(FIRST_NODE, network=network), "127.0.0.1:9999")

    program, option, code = shlex.split(command)

    assert (program, option) == ("python", "-c")
    assert network_in(code) == network
    if network:
        assert not set(command.partition("network=")[2].partition(")")[0]) & set('"$`!%')


def network_in(code: str) -> str:
    """What the program passes as `network`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.keyword) and node.arg == "network":
            return ast.literal_eval(node.value)
    return ""


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
@pytest.mark.parametrize("network", ["lab", 'it\'s "mine" $HOME `id` \\n !x %PATH% ünï'])
def test_a_real_shell_hands_the_program_over_as_it_is(network: str):
    command = find_command(replace(FIRST_NODE, network=network), "127.0.0.1:9999")
    printed = subprocess.run(
        ["sh", "-c", "printf %s " + command.removeprefix("python -c ")], capture_output=True, check=True, text=True
    ).stdout

    assert network_in(printed) == network
    assert "sep='\\n'" in printed

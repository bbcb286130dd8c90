"""Every command beside nodes that run: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synapse_p2p import Server
from synapse_p2p.identity import network_id_of
from tests.cli.typing_commands import PATIENCE_S, ROOT, Up, typed, up

MAX_FIRST_CPU_S = 5 * 0.5
"""From the start of the process to its end: half a second on a quiet machine."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory; the user's own folders are in it."""
    folder = tmp_path_factory.mktemp("cli")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))
    patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def rita(folder: Path) -> Iterator[Up]:
    """The first node: an agent."""
    with up(folder, "--agent", "agents:rita", "--network", "lab") as node:
        node.read_until("(leaves the swarm)")
        yield node


@pytest.fixture(scope="module")
def olga(folder: Path, rita: Up) -> Iterator[Up]:
    """A second agent, made by a function."""
    with up(folder, "--agent", "agents:olga", "--network", "lab", "--seed", rita.seed) as node:
        node.read_until("(leaves the swarm)")
        yield node


def test_up_says_who_and_where_it_is_and_what_to_type(rita: Up):
    assert re.search(r"^id          [0-9a-f]{64}$", rita.text, re.MULTILINE)
    assert re.search(r"^joined      no seeds: a first node$", rita.text, re.MULTILINE)
    assert "  python -m synapse_p2p ask python " in rita.text
    assert re.search(
        r"^  python -m synapse_p2p up --seed [0-9a-f]{64}@127\.0\.0\.1:\d+ --network lab$", rita.text, re.MULTILINE
    )
    assert "open swarm" not in rita.text  # nobody from elsewhere reaches it


def test_status_tells_how_the_node_here_is(rita: Up, olga: Up):
    shown = typed("status", "--data-dir", rita.data_dir)
    found = typed("status", "--data-dir", rita.data_dir, "--json").found

    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith("agent       Rita (reviewer)\n")
    assert "record      kept under 2 of 2 names; 15 min left\n" in shown.out
    assert found["agent"]["capabilities"] == ["python", "code-review"]
    assert (found["network"], found["mode"], found["contacts"]) == ("lab", "node", 1)
    assert found["pid"] == rita.popen.pid
    assert re.search(r"^calls       \d+ served; \d+ run or wait now$", shown.out, re.MULTILINE)
    assert re.search(r"^traffic     \d+\.\d kB in, \d+\.\d kB out$", shown.out, re.MULTILINE)
    assert found["stats"]["sessions"]["accepted"] >= 1  # at least this one
    assert found["stats"]["tasks"]["max_tasks"] == found["agent"]["max_tasks"]


def test_with_several_nodes_the_newest_is_meant_and_the_others_are_named(rita: Up, olga: Up):
    shown = typed("status")

    assert "agent       Olga\\x1b[31m (coder)" in shown.out
    assert shown.err.startswith("2 nodes run here; this is Olga\\x1b[31m. Others:\n  Rita  --data-dir /")


def test_peers_are_those_whom_the_node_knows(rita: Up, olga: Up):
    shown = typed("peers", "--data-dir", rita.data_dir)
    found = typed("peers", "--data-dir", rita.data_dir, "--json").found

    assert shown.out.splitlines()[0].split() == ["ID", "STATE", "SEEN", "ADDRESS"]
    assert found["count"] == 1
    assert olga.seed == f"{found['peers'][0]['id']}@{found['peers'][0]['addresses'][0]}"
    assert found["guests"] == []  # we are one, and leave ourselves out


def test_find_names_who_offers_it_and_needs_no_seed(rita: Up, olga: Up):
    shown = typed("find", "code-review")
    found = typed("find", "code-review", "--json").found

    assert shown.code == 0
    assert re.search(r"^Rita +reviewer +[0-9a-f]{16} ", shown.out, re.MULTILINE)
    assert (found["complete"], [agent["name"] for agent in found["agents"]]) == (True, ["Rita"])
    assert found["agents"][0]["claims"][1] == {
        "name": "code-review",
        "version": "2.1.0",
        "attributes": {"price": 3, "lang": ["de", "fr"]},
    }


def test_the_first_agent_is_told_of_soon(rita: Up, olga: Up):
    before = os.times()

    command = [sys.executable, "-X", "importtime", "-m", "synapse_p2p", "find", "code-review", "--jsonl"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=PATIENCE_S)

    after = os.times()
    assert [json.loads(line)["name"] for line in told.stdout.splitlines()] == ["Rita"]
    loaded = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "dht.swarm" in loaded
    assert not loaded & {"rich", "typer", "pydantic", "sqlite3", "tomllib", "statistics", "importlib.metadata"}
    assert not loaded & {"synapse_p2p.agent", "synapse_p2p.client", "dht.asks", "dht.publisher", "simulations"}
    took_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert took_s < MAX_FIRST_CPU_S


def as_users() -> dict[str, str]:
    """The environment of now, without the development mode, which logs what is slow."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}


@pytest.mark.parametrize("limit", [("--limit", "5"), ("-n5",)], ids=["without typer", "with typer"])
def test_find_ends_in_silence_where_nobody_reads_it_any_more(rita: Up, limit: tuple[str, ...]):
    command = [sys.executable, "-m", "synapse_p2p", "find", "code-review", "--json", *limit]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=as_users()) as told:
        assert told.stdout is not None
        told.stdout.close()
        told.stdout = None
        said = told.communicate(timeout=PATIENCE_S)[1]

    assert (told.returncode, said) == (1, b"")


@pytest.mark.parametrize(
    "timeout", [("--timeout", "20"), ("--timeout", "20", "-n5")], ids=["without typer", "with typer"]
)
def test_ctrl_c_ends_a_find_that_waits(timeout: tuple[str, ...]):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        command = [sys.executable, "-m", "synapse_p2p", "find", "x", "--seed", f"127.0.0.1:{silent.getsockname()[1]}"]
        waiting = subprocess.Popen([*command, *timeout], stderr=subprocess.PIPE, cwd=ROOT, env=as_users())
        with waiting, silent.accept()[0]:
            waiting.send_signal(signal.SIGINT)
            said = waiting.communicate(timeout=PATIENCE_S)[1]

    assert (waiting.returncode, said) == (130, b"")


def test_find_takes_conditions_versions_and_a_limit(rita: Up, olga: Up):
    cheap = typed("find", "code-review>=2,<3", "--where", "price<5", "-w", "lang in fr,it", "-n", "1", "--json")
    dear = typed("find", "code-review", "--where", "price>=5")

    assert [agent["name"] for agent in cheap.found["agents"]] == ["Rita"]
    assert dear.code == 3


def test_find_explains_itself(rita: Up, olga: Up):
    shown = typed("find", "coding", "--explain")

    assert "find coding: read coding" in shown.out
    assert "asked" in shown.out
    assert "\x1b" not in shown.out  # an agent has chosen to be called so


def test_whom_nobody_offers_is_exit_code_3_with_what_to_type_next(rita: Up):
    shown = typed("find", "cooking", program="synapse-p2p")

    assert (shown.code, shown.out) == (3, "")
    assert shown.err.splitlines() == [
        "Error: nobody offers cooking",
        "Next:",
        "  synapse-p2p find cooking --explain",
        "  synapse-p2p status",
    ]


def test_what_is_typed_next_comes_to_the_same_place(rita: Up):
    flags = f"--seed {rita.seed} --network lab"
    for command in (("find", "cooking"), ("ask", "cooking", "an egg"), ("ask", "cooking", "an egg", "--stream")):
        shown = typed(*command, *flags.split())

        assert shown.code == 3
        assert shown.err.splitlines()[2:] == [f"  synapse find cooking --explain {flags}", f"  synapse doctor {flags}"]

    refused = typed("find", "cooking", "--seed", rita.seed, "--network", "other")

    assert refused.code == 6
    assert refused.err.splitlines()[2:] == [f"  synapse doctor --seed {rita.seed} --network other"]


def test_describe_has_schemas_and_endpoints(rita: Up, olga: Up):
    by_capability = typed("describe", "code-review")
    by_address = typed("describe", rita.seed, "--json").found["described"][0]

    assert "Rita (reviewer) at 127.0.0.1:" in by_capability.out
    assert "capability  code-review 2.1 - Reads a diff.\n" in by_capability.out
    assert "endpoint    add - The sum of two numbers.\n" in by_capability.out
    assert [each["name"] for each in by_address["capabilities"]] == ["python", "code-review"]
    assert by_address["methods"] == [{"name": "add", "description": "The sum of two numbers."}]


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--explain"])
def test_a_search_ends_with_its_timeout(rita: Up, monkeypatch: pytest.MonkeyPatch, form: str):
    async def search(*_: object, **__: object) -> None:
        await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr("dht.searching.Searching.search", search)
    began_at = time.monotonic()

    shown = typed("find", "python", "--timeout", "2", form)

    assert time.monotonic() - began_at < PATIENCE_S / 2
    if form == "--explain":
        assert (shown.code, shown.out) == (5, "")
        assert shown.err.splitlines()[0] == "Error: the search is not over after 2 s"
    else:
        assert shown.code == 3
        assert "nobody offers python, as far as could be seen: not over after 2 s" in shown.err


def test_a_description_ends_with_its_timeout(rita: Up, monkeypatch: pytest.MonkeyPatch):
    async def call(*_: object, **__: object) -> None:
        await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr("dht.agent_calls.AgentCalls.call_agent", call)
    began_at = time.monotonic()

    place = typed("describe", rita.seed, "--network", "lab", "--timeout", "2")
    agents = typed("describe", "python", "--timeout", "2", "--json").found["described"]

    assert time.monotonic() - began_at < PATIENCE_S / 2
    assert place.code == 5
    assert place.err.startswith(f"Error: {rita.seed} has not told all of it after 2 s")
    assert [(each["name"], each["problem"]) for each in agents] == [("Rita", "it has not told all of it after 2 s")]

    monkeypatch.setattr("dht.searching.Searching.search", call)
    none = typed("describe", "python", "--timeout", "2")

    assert (none.code, none.err.splitlines()[0]) == (
        3,
        "Error: nobody offers python, as far as could be seen: not over after 2 s",
    )


def test_ask_has_a_task_done_with_its_context(folder: Path, rita: Up, olga: Up):
    (folder / "context.json").write_text('{"diff": "+ one", "strict": false}', encoding="utf-8")
    options = ["--context-file", str(folder / "context.json"), "-c", "strict=true", "-c", "who=me"]

    answer = typed("ask", "python", "Review this", *options, "--json").found
    shown = typed("ask", "coding", "-", standard_input="a sort")
    by_address = typed("ask", rita.seed, "Review", "--json").found

    assert answer["result"] == {"task": "Review this", "context": {"diff": "+ one", "strict": True, "who": "me"}}
    assert (answer["agent"]["name"], answer["attempts"][0]["end"]) == ("Rita", "answered")
    assert shown.out == "coded a sort\n"
    assert re.fullmatch(r"Olga\\x1b\[31m answered in \d+ ms\n", shown.err)
    assert by_address["result"]["task"] == "Review"


def test_ask_shows_what_an_agent_says_meanwhile(rita: Up, olga: Up):
    shown = typed("ask", "coding", "a sort", "--stream")
    lines = typed("ask", "coding", "a sort", "--jsonl")
    whole = typed("ask", "coding", "a sort", "--stream", "--json").found
    by_address = typed("ask", olga.seed, "a sort", "--stream")

    assert shown.out == by_address.out == "thinking\ncoded a sort\n"
    assert " answered in " in shown.err
    assert [json.loads(line) for line in lines.out.splitlines()] == [{"item": "thinking"}, {"item": "coded a sort"}]
    assert (whole["result"], whole["attempts"][0]["end"]) == ("coded a sort", "answered")


def test_an_agent_that_fails_is_exit_code_1_in_its_own_words(rita: Up):
    shown = typed("ask", "python", "fail")

    assert (shown.code, shown.err) == (1, "Error: tired: not today\n")


def test_call_runs_a_function_here_there_and_as_operator(rita: Up, olga: Up):
    here = ["call", "here", "--data-dir", rita.data_dir]

    assert typed(*here, "add", "2", "3").out == "5\n"
    assert typed(*here, "reset").out == "as new\n"
    assert typed("call", rita.seed, "add", "a=2", "b=4", "--network", "lab", "--json").found == {"result": 6}
    assert typed("call", rita.seed.partition("@")[0], "add", "1", "1", "--data-dir", olga.data_dir).out == "2\n"
    refused = typed("call", rita.seed, "reset", "--network", "lab")
    assert (refused.code, refused.err.splitlines()[0].startswith("Error: reset is not open to you")) == (6, True)
    wrong = typed(*here, "ad", "2")
    assert wrong.code == 3
    assert wrong.err.splitlines() == [
        "Error: Unregistered endpoint called: ad; did you mean 'add'?",
        "Next:",
        f"  synapse call here _synapse.methods --data-dir {rita.data_dir}",
    ]
    assert "add" in [method["name"] for method in typed(*here, "_synapse.methods", "--json").found["result"]]
    elsewhere = typed("call", rita.seed, "ad", "2", "--network", "lab")
    assert elsewhere.err.splitlines()[2:] == [f"  synapse describe {rita.seed} --network lab"]


async def test_call_reaches_a_server_that_speaks_the_plain_wire_alone():
    app = Server()

    @app.endpoint()
    async def add(a: int, b: int) -> int:
        return a + b

    async with await asyncio.start_server(app.handle_data, "127.0.0.1", 0) as listener:
        place = f"legacy://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        shown = await asyncio.to_thread(typed, "call", place, "add", "2", "b=3")
        unknown = await asyncio.to_thread(typed, "call", place, "ad", "2")
    gone = await asyncio.to_thread(typed, "call", place, "add", "2")

    assert (shown.code, shown.out) == (0, "5\n")
    assert (unknown.code, unknown.err) == (1, "Error: Unregistered endpoint called: ad\n")
    assert gone.code == 4


def test_operator_endpoints_are_closed_to_others(rita: Up):
    for name in ("_swarm.status", "_swarm.peers", "_swarm.agents", "_swarm.events", "_synapse.stats"):
        refused = typed("call", rita.seed, name, "--network", "lab")

        assert refused.code == 6, refused
        assert "is for operators alone" in refused.err


def test_trace_draws_a_lookup(rita: Up, olga: Up):
    shown = typed("trace", "coding")
    found = typed("trace", rita.seed.partition("@")[0], "--json").found

    assert shown.out.startswith("lookup of those who know of coding, ")
    assert re.search(r"answered after \d+\.\d ms", shown.out)
    assert shown.out.splitlines()[-1].startswith("2 asked, 0 failed, 1 hops; nearest: ")
    assert found["closest"][0] == {
        "id": rita.seed.partition("@")[0],
        "bits": 256,
        "addresses": [rita.seed.partition("@")[2]],
    }


def test_a_lookup_that_is_traced_ends_with_its_timeout(rita: Up, monkeypatch: pytest.MonkeyPatch):
    async def lookup(*_: object, **__: object) -> None:
        await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr("dht.swarm.Swarm.lookup", lookup)

    shown = typed("trace", "--timeout", "2", "--seed", rita.seed, "--network", "lab")

    assert (shown.code, shown.err.splitlines()[0]) == (5, "Error: the lookup is not over after 2 s")


def test_doctor_finds_nothing_wrong_with_a_healthy_node(rita: Up, olga: Up):
    for data_dir in (rita.data_dir, olga.data_dir):
        found = typed("doctor", "--data-dir", data_dir, "--json").found

        assert found["healthy"]
        assert {check["state"] for check in found["checks"]} == {"ok"}, found
    shown = typed("doctor", "--data-dir", rita.data_dir)
    assert (shown.code, shown.out.splitlines()[-1]) == (0, "healthy")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "it belongs to another network"),
        (("--network", "other"), "it belongs to another network"),
        (("--network", "lab", "--network-key-file", "KEY"), "network_key="),
    ],
    ids=["no network", "other network", "wrong key"],
)
def test_doctor_says_why_a_seed_lets_nobody_in(folder: Path, rita: Up, options: tuple[str, ...], line: str):
    key_file = folder / "some.key"
    if not key_file.exists():
        assert typed("id", "new-network-key", str(key_file)).code == 0
    named = [str(key_file) if option == "KEY" else option for option in options]

    shown = typed("doctor", "--seed", rita.seed, *named)

    assert shown.code == 1
    assert shown.out.splitlines()[0].startswith("FAILED  seeds ")
    assert line in shown.out
    assert "next: synapse " in shown.out


def test_doctor_says_that_a_seed_is_down():
    shown = typed("doctor", "--seed", "127.0.0.1:1")

    assert shown.code == 1
    assert "FAILED  seeds         127.0.0.1:1: cannot be reached" in shown.out


def test_doctor_says_that_nobody_answers_at_the_address_that_others_are_told(folder: Path, rita: Up):
    options = ["--network", "lab", "--seed", rita.seed, "--advertise", "127.0.0.1:1"]
    with up(folder, *options, "--data-dir", str(folder / "unpublished")) as node:
        node.read_until("(leaves the swarm)")
        shown = typed("doctor", "--data-dir", str(folder / "unpublished"))

    assert shown.code == 1
    failed = [line for line in shown.out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert "reachability  nobody answers at 127.0.0.1:1, which is told to others" in failed[0]
    assert "next: synapse up --advertise IP:PORT, or publish the port" in shown.out


def test_a_seed_that_is_down_is_exit_code_4():
    shown = typed("find", "python", "--seed", "127.0.0.1:1", "--timeout", "1")

    assert shown.code == 4
    assert shown.err.splitlines()[1:] == ["Next:", "  synapse doctor --seed 127.0.0.1:1"]


def test_watch_tells_of_calls_and_of_who_comes_and_goes(folder: Path, rita: Up):
    # In a process of its own, for it goes on while other commands are typed.
    command = [sys.executable, "-m", "synapse_p2p", "watch", "--jsonl", "--interval", "0.1"]
    options = ["--data-dir", rita.data_dir, "--seconds", str(2 * PATIENCE_S)]
    lines: list[dict[str, Any]] = []

    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, cwd=ROOT) as watching:

        def read_until(event: str, node_id: str) -> None:
            assert watching.stdout is not None
            while not lines or (lines[-1]["event"], lines[-1]["id"]) != (event, node_id):
                line = watching.stdout.readline()
                assert line, f"it ended before it told of {event}: {lines}"
                lines.append(json.loads(line))

        own_id = rita.seed.partition("@")[0]
        try:
            read_until("watching", own_id)
            with up(folder, "--agent", "agents:olga", "--network", "lab", "--seed", rita.seed) as second:
                second_id = second.seed.partition("@")[0]
                read_until("agent", second_id)
                assert typed("call", rita.seed, "add", "2", "3", "--network", "lab").code == 0
                read_until("calls", own_id)
                second.end(signal.SIGTERM)
            read_until("gone", second_id)
        finally:
            watching.send_signal(signal.SIGINT)

    assert watching.returncode == 130
    events = [line["event"] for line in lines if line["id"] == second_id]
    assert events.index("joined") < events.index("left")
    assert lines[-1]["name"] == "Olga\x1b[31m"


def test_watch_writes_a_line_for_each_thing_where_there_is_no_terminal(rita: Up, olga: Up):
    shown = typed("watch", "--data-dir", rita.data_dir, "--seconds", "0.1")

    own_id, second_id = (node.seed[:16] for node in (rita, olga))
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[0] == f"Rita {own_id} is watched"
    assert f"Olga\\x1b[31m {second_id} offers coding" in shown.out


def test_a_node_that_is_stopped_does_not_answer_and_doctor_says_so(rita: Up):
    rita.popen.send_signal(signal.SIGSTOP)
    try:
        shown = typed("doctor", "--data-dir", rita.data_dir)
    finally:
        rita.popen.send_signal(signal.SIGCONT)

    assert shown.code == 1
    assert f"FAILED  loop          Rita (process {rita.popen.pid}) runs and does not answer" in shown.out


def test_nodes_of_two_networks_have_to_be_told_apart_and_a_key_is_found_by_itself(folder: Path, rita: Up):
    key_file = folder / "closed.key"
    assert typed("id", "new-network-key", str(key_file)).code == 0
    options = ["--network", "closed", "--network-key-file", str(key_file)]
    with up(folder, *options) as closed, up(folder, *options) as second:
        folders = [Path(node.data_dir).name for node in (closed, second)]
        for node in (closed, second):
            node.read_until("(leaves the swarm)")

        ambiguous = typed("find", "python")
        status = typed("status", "--network", "closed", "--json").found
        found = typed("find", "python", "--network", "closed")
        closed.end(signal.SIGINT)

    assert sorted(folders) == ["node", "node.2"]  # without an agent each has a folder of its own all the same
    assert ambiguous.code == 2
    assert "  synapse status --network closed\n  synapse status --network lab\n" in ambiguous.err
    assert (status["has_network_key"], status["agent"]) == (True, None)
    assert found.code == 3  # it let us in, and nobody is there
    assert f"--network-key-file {key_file}" in closed.text


def test_up_leaves_in_good_order_and_takes_its_file_along(folder: Path):
    with up(folder, "--data-dir", str(folder / "own")) as node:
        node.read_until("(leaves the swarm)")
        assert (folder / "own" / "running.json").stat().st_mode & 0o777 == 0o600
        second = typed("up", "--data-dir", str(folder / "own"))
        code = node.end(signal.SIGTERM)

    assert code == 0
    assert node.text.splitlines()[-1] == "left in good order"
    assert "Traceback" not in node.text
    assert not (folder / "own" / "running.json").exists()
    assert second.code == 2
    assert f"is in use by process {node.popen.pid}" in second.err


def test_where_no_key_can_be_kept_a_node_runs_all_the_same_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "a file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "a file"))

    with up(folder, "--network", "keyless", "--json") as node:
        started = json.loads(node.read_until(r"(?m)^(\{.*\})$"))

    assert "the key of this node is not kept: " in node.text
    assert "Give it --data-dir DIR" in node.text
    assert (started["network"], started["data_dir"], started["capabilities"]) == ("keyless", "", [])
    assert started["seed"] == f"{started['id']}@{started['listening'][0]}"


def test_id_shows_who_the_nodes_here_are(rita: Up):
    shown = typed("id", "--network", "lab")
    found = typed("id", "--data-dir", rita.data_dir, "--json").found["keys"]
    by_path = typed("id", "show", f"{rita.data_dir}/node.key", "--json").found["keys"]

    own_id = rita.seed.partition("@")[0]
    assert f"id          {own_id}\nkey in      {rita.data_dir}/node.key, in use\noperator    " in shown.out
    assert [(key["id"], key["runs"], key["problem"]) for key in found] == [(own_id, True, "")]
    assert by_path[0]["id"] == own_id
    assert typed("id", "--network", "nobody's").code == 3


def test_id_makes_keys_and_never_over_others(folder: Path):
    made = typed("id", "new", str(folder / "own.key"), "--json").found
    network = typed("id", "new-network-key", str(folder / "net.key"), "--json").found
    meant = typed("id", "network", "--network", "lab", "--network-key-file", str(folder / "net.key"), "--json").found

    assert typed("id", "new", str(folder / "other.key")).out.startswith(
        f"path        {folder / 'other.key'}\nid          "
    )
    assert typed("id", "show", made["path"]).out.splitlines()[0] == f"id          {made['id']}"
    assert (meant["network"], meant["fingerprint"]) == ("lab", network["fingerprint"])
    assert typed("id", "network").out == f"network id  {network_id_of('').hex()}\n"
    for again in (("new", "own.key"), ("new-network-key", "net.key")):
        refused = typed("id", again[0], str(folder / again[1]))
        assert refused.code == 2
        assert "is there already: name another file\nNext:\n  synapse id " in refused.err


def test_id_tells_of_a_key_that_cannot_be_read(folder: Path):
    (folder / "spoilt").mkdir()
    (folder / "spoilt" / "node.key").write_text("synapse-key-1 00", encoding="ascii")
    (folder / "spoilt" / "node.key").chmod(0o600)

    shown = typed("id", "--data-dir", str(folder / "spoilt"))

    assert shown.code == 0
    assert "id          not to be read\n" in shown.out
    assert "is damaged" in shown.out


def test_the_file_of_a_node_that_was_killed_is_recognised(folder: Path):
    with up(folder, "--data-dir", str(folder / "killed")) as node:
        node.read_until("(leaves the swarm)")
        node.kill()

    shown = typed("status", "--data-dir", str(folder / "killed"))

    assert (folder / "killed" / "running.json").exists()
    assert shown.code == 7
    assert f"process {node.popen.pid}, which was a node at 127.0.0.1:" in shown.err
    assert "  synapse up\n" in shown.err


def test_a_file_whose_process_number_was_given_to_another_is_recognised(folder: Path):
    path = folder / "killed" / "running.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r'"pid": \d+', f'"pid": {os.getpid()}', text), encoding="utf-8")

    shown = typed("status", "--data-dir", str(folder / "killed"))

    assert shown.code == 4
    assert "does not answer at 127.0.0.1:" in shown.err
    assert "ended while another process got its number" in shown.err

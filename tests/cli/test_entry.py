"""Where commands begin: names, help, what is missing, colours, and the verbs of release 2."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from synapse_p2p.apps.cli.blocks import Line, Table, Tone
from synapse_p2p.apps.cli.entry import VERBS_OF_RELEASE_2, main, sn
from synapse_p2p.apps.cli.program import program_name
from synapse_p2p.apps.cli.screen import Screen
from tests.cli.typing_commands import ROOT, Typed, typed

MAX_HELP_CPU_S = 5 * 0.25  # 0.25 s on a quiet machine
COMMANDS = (
    ["up", "status", "peers", "find", "describe", "ask", "call", "doctor", "trace", "watch", "demo", "id", "simulate"],
    ["show", "new", "new-network-key", "network"],
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"} | {"PYTHONPATH": str(ROOT)}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT | environment,
        cwd=ROOT,
        check=False,
    )


def test_help_is_there_at_once_and_loads_no_overlay():
    before = os.times()

    ended = run("-X", "importtime", "-m", "synapse_p2p", "--help")

    after = os.times()
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: python -m synapse_p2p [OPTIONS] COMMAND")
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"dht", "rich", "cryptography", "msgpack", "synapse_p2p.server", "synapse_p2p.client"}
    took_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert took_s < MAX_HELP_CPU_S  # of the processor; Windows tells 0


@pytest.mark.parametrize("command", COMMANDS[1])
def test_each_command_of_id_has_help_with_its_name(command: str):
    shown = typed("id", command, "--help")

    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: synapse id {command} [OPTIONS]")
    assert "--json" in shown.out


@pytest.mark.parametrize("command", COMMANDS[0])
def test_each_command_has_help_with_its_name(command: str):
    shown = typed(command, "--help", program="synapse-p2p")

    begins = "usage: synapse-p2p simulate [-h]" if command == "simulate" else f"Usage: synapse-p2p {command} [OPTIONS]"
    assert shown.out.startswith(begins)
    assert shown.code == 0


def test_help_names_the_environment_and_every_command():
    root, ids = typed("--help").out, typed("id", "--help").out

    assert "SYNAPSE_NETWORK_KEY_FILE" in typed("find", "--help").out
    for shown, commands in zip((root, ids), COMMANDS, strict=True):
        listed = [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines() if line[2:3].strip()]
        assert sorted(listed) == sorted(commands)


def test_no_command_is_help_and_a_wrong_one_is_exit_code_2():
    assert typed().out.startswith("Usage: synapse [OPTIONS] COMMAND")
    wrong = typed("fnd")
    assert (wrong.code, wrong.out) == (2, "")
    assert "Try 'synapse -h' for help." in wrong.err or "Try 'synapse --help' for help." in wrong.err
    assert typed("find").code == 2


def test_the_release_is_told():
    assert typed("--version").out.startswith("3.")


def test_every_name_under_which_we_are_called_is_the_one_that_is_printed():
    assert program_name("/usr/bin/synapse") == "synapse"
    assert program_name("C:/Scripts/synapse-p2p.exe") == "synapse-p2p"
    assert program_name("/lib/synapse_p2p/__main__.py") == "python -m synapse_p2p"
    assert program_name("") == "synapse"


def test_the_package_installs_the_commands_under_each_of_their_names():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]

    called = {name: EntryPoint(name, place, "console_scripts").load() for name, place in scripts.items()}

    assert called == {"synapse": main, "synapse-p2p": main, "sn": sn}


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_there_is_one_line_and_the_command_that_installs_it(missing: str):
    program = f"import sys; sys.modules[{missing!r}] = None; from synapse_p2p.apps.cli.entry import main; main()"

    ended = run("-c", program)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines() == [
        f"Error: the commands need the packages typer and rich, and this Python has no {missing}",
        "Next:",
        "  python -m pip install 'synapse-p2p[cli]'",
    ]


def test_a_shell_completes_commands():
    program = "import sys; sys.argv[0] = 'synapse'; from synapse_p2p.apps.cli.entry import main; main()"

    ended = run("-c", program, _SYNAPSE_COMPLETE="complete_bash", COMP_WORDS="synapse st", COMP_CWORD="1")

    assert ended.stdout.split() == ["status"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed_so_far", "completions"),
    [
        ("synapse wa", ["watch"]),
        ("synapse find x --exp", ["--explain"]),
        ("synapse id new", ["new", "new-network-key"]),
    ],
)
def test_bash_completes_what_is_typed_once_it_has_read_what_show_completion_prints(
    tmp_path: Path, typed_so_far: str, completions: list[str]
):
    command = tmp_path / "synapse"
    command.write_text(f"#!{sys.executable}\nfrom synapse_p2p.apps.cli.entry import main\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    script = (
        'eval "$(synapse --show-completion)"; '  # from a file it would be just so
        f"COMP_WORDS=({typed_so_far}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        "$(complete -p synapse | sed 's/.* -F \\([^ ]*\\) .*/\\1/') synapse; echo \"${COMPREPLY[@]}\""
    )

    ended = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        check=True,
    )

    assert (ended.stdout.split(), ended.stderr) == (completions, "")


@pytest.mark.parametrize("verb", [*VERBS_OF_RELEASE_2, "", "node"])
def test_verbs_of_release_2_print_the_new_ones(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["sn", "--team", *([verb] if verb else [])])

    with pytest.raises(SystemExit) as end:
        sn()

    said = capsys.readouterr().err
    expected = [VERBS_OF_RELEASE_2[verb]] if verb in VERBS_OF_RELEASE_2 else VERBS_OF_RELEASE_2.values()
    assert end.value.code == 2
    assert [line.strip() for line in said.splitlines()[2:]] == [f"synapse {command}" for command in expected]
    for command in expected:
        assert typed(command.split()[0], "--help").code == 0


@pytest.mark.parametrize("verb", ["broadcast", "list-swarms"])
def test_verbs_that_are_gone_say_what_to_type(verb: str):
    shown = typed(verb, "lab", "--team", "x")

    assert shown.code == 2
    assert "\nNext:\n  synapse " in shown.err


def test_simulate_hands_over_to_the_simulations():
    shown = typed("simulate", "run", "lookups", "--nodes", "5", "--lookups", "3", "--json")

    assert shown.code == 0
    assert shown.found["scenario"] == "lookups"

    wrong = typed("simulate", "run", "lookups", "--nodes", "0", program="synapse-p2p")
    assert wrong.code == 2
    assert "(see synapse-p2p simulate --help)" in wrong.err
    assert "(see synapse-p2p simulate run --help)" in typed("simulate", "run", "nonsense", program="synapse-p2p").err


def test_a_simulation_that_fails_names_the_command_that_has_it_again_as_it_was_called(tmp_path: Path):
    # A bug is planted in this scenario, which some seeds show.
    def simulate(command: str, *options: str) -> Typed:
        return typed("simulate", command, "planted-slot-leak", *options, program="synapse-p2p")

    seed, ran = next((seed, ran) for seed in map(str, range(1, 31)) if (ran := simulate("run", "--seed", seed)).code)
    swept = simulate("sweep", "--seeds", seed, "--out", str(tmp_path))

    [trace] = tmp_path.glob("*.trace.txt")
    again = "to see the same again: synapse-p2p simulate run planted-slot-leak "
    assert (ran.code, swept.code) == (1, 1)
    assert all(again in said for said in (ran.err, swept.err, trace.read_text(encoding="utf-8")))


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of Unix")
@pytest.mark.parametrize(
    ("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_gets_colours_unless_they_are_unwanted(
    environment: dict[str, str], is_coloured: bool, monkeypatch: pytest.MonkeyPatch
):
    import pty

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()

    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        Screen("synapse", out=terminal).show(
            [Line("[red]well[/red] \x07", Tone.GOOD), Table(("A", "B"), (("1", "[bold]2"),))]
        )
        shown = ""
        while "[bold]2" not in shown:  # it comes in pieces
            shown += os.read(master, 4096).decode()
    os.close(master)

    assert ("\x1b[32m" in shown) is is_coloured
    assert "[red]well[/red] \\x07" in shown  # strangers write no markup
    assert "[bold]2" in shown
    assert "\x07" not in shown


def test_a_terminal_gets_plain_text_where_there_is_no_rich(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()

    Screen("synapse", out=terminal).show([Line("well", Tone.GOOD)])

    assert terminal.getvalue() == "well\n"


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("synapse_p2p.apps.cli.settings.read_settings_file", broken)
    with pytest.raises(KeyError):
        typed("status")


def test_a_context_file_that_is_no_text_is_exit_code_2(tmp_path: Path):
    (tmp_path / "context.json").write_bytes(b'{"diff": "\xff"}')

    shown = typed("ask", "python", "Review this", "--context-file", str(tmp_path / "context.json"))

    assert (shown.code, shown.err) == (2, f"Error: {tmp_path}/context.json is no text in UTF-8\n")


def test_a_flag_goes_over_the_environment_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own.toml").write_text('network = "of the file"', encoding="utf-8")
    monkeypatch.setenv("SYNAPSE_CONFIG", str(tmp_path / "own.toml"))
    by_file = typed("id", "network", "--json").found
    monkeypatch.setenv("SYNAPSE_NETWORK", "of the environment")
    by_environment = typed("id", "network", "--json").found
    by_flag = typed("id", "network", "--network", "of the flag", "--json").found

    networks = [meant["network"] for meant in (by_file, by_environment, by_flag)]
    assert networks == ["of the file", "of the environment", "of the flag"]


def test_a_settings_file_that_is_wrong_is_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own.toml").write_text("network = 5", encoding="utf-8")
    monkeypatch.setenv("SYNAPSE_CONFIG", str(tmp_path / "own.toml"))

    shown = typed("status")

    assert (shown.code, shown.err) == (2, f'Error: {tmp_path}/own.toml: network is text, as in network = "..."\n')

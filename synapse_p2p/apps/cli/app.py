"""Which commands there are, and what can be said to each. What they do is loaded when one is called, not for `--help`.

Each takes what was typed, has it done, and prints what was found: as a view for people, or with `--json` as it is.
Annotations are no texts here (`from __future__`): typer reads them all at each start, and would have to evaluate them.
"""

import shlex
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from synapse_p2p.apps.cli.settings import Settings, settled

if TYPE_CHECKING:
    from synapse_p2p.apps.cli.screen import Screen

T = TypeVar("T")

app = typer.Typer(
    help="Agents that find each other by what they can do: run one, see who is there, have work done.",
    rich_markup_mode=None,  # help without rich is there in a third of the time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
ids = typer.Typer(help="Who nodes are, and the keys of networks.", rich_markup_mode=None, invoke_without_command=True)
app.add_typer(ids, name="id")

Seeds = Annotated[
    list[str] | None,
    typer.Option(
        "--seed", "-s", envvar="SYNAPSE_SEED", help="HOST:PORT or ID@HOST:PORT to enter through; again for more."
    ),
]
Network = Annotated[str | None, typer.Option(envvar="SYNAPSE_NETWORK", help="The network's name.")]
NetworkKeyFile = Annotated[
    str | None, typer.Option(envvar="SYNAPSE_NETWORK_KEY_FILE", help="File with the network's key.")
]
DataDir = Annotated[
    str | None, typer.Option(envvar="SYNAPSE_DATA_DIR", help="The node's folder: its key, and what it remembers.")
]
Timeout = Annotated[
    float | None, typer.Option(envvar="SYNAPSE_TIMEOUT", min=0.1, help="Seconds to wait; 30 by default.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonLines = Annotated[bool, typer.Option("--jsonl", help="Print a JSON object a line, each as soon as it is known.")]


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the release, and end.")] = False,
) -> None:
    if version:
        from synapse_p2p.version import VERSION

        typer.echo(VERSION)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def up(
    ctx: typer.Context,
    agent: Annotated[str | None, typer.Option(help="Your AgentNode, as module:attribute.")] = None,
    listen: Annotated[str | None, typer.Option(envvar="SYNAPSE_LISTEN", help="HOST:PORT; port 0 is any.")] = None,
    advertise: Annotated[
        str | None, typer.Option(envvar="SYNAPSE_ADVERTISE", help="IP:PORT at which others dial this node.")
    ] = None,
    seed: Seeds = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say who joins, and more, on standard error.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a node, or an agent, until Ctrl-C."""
    from synapse_p2p.apps.cli.up import up as run

    settings = _settings(seed, network, network_key_file, data_dir, listen=listen, advertise=advertise)
    run(settings, _screen(ctx), agent_place=agent, is_verbose=verbose, is_json=json)


@app.command()
def status(
    ctx: typer.Context,
    network: Network = None,
    data_dir: DataDir = None,
    network_key_file: NetworkKeyFile = None,
    json: Json = False,
) -> None:
    """How the node on this machine is."""
    from synapse_p2p.apps.cli import operating, views

    screen = _screen(ctx)
    found = _wait(operating.status(_settings(None, network, network_key_file, data_dir), screen))
    screen.print(found, views.view_of_status, is_json=json)


@app.command()
def peers(
    ctx: typer.Context,
    network: Network = None,
    data_dir: DataDir = None,
    network_key_file: NetworkKeyFile = None,
    json: Json = False,
) -> None:
    """Whom the node on this machine knows."""
    from synapse_p2p.apps.cli import operating, views

    screen = _screen(ctx)
    found = _wait(operating.peers(_settings(None, network, network_key_file, data_dir), screen))
    screen.print(found, views.view_of_peers, is_json=json)


@app.command()
def doctor(
    ctx: typer.Context,
    seed: Seeds = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Why the node on this machine is not found, or why seeds do not let us in."""
    from synapse_p2p.apps.cli import views
    from synapse_p2p.apps.cli.doctor import doctor as examine

    screen = _screen(ctx)
    settings = _settings(seed, network, network_key_file, data_dir, timeout=timeout)
    source = ctx.get_parameter_source("seed")
    is_typed = source is not None and source.name == "COMMANDLINE"
    found = _wait(examine(settings, screen, are_seeds_meant=is_typed))
    screen.print(found, views.view_of_checks, is_json=json)
    if not found["healthy"]:
        raise typer.Exit(1)


@app.command()
def find(
    ctx: typer.Context,
    capabilities: Annotated[list[str], typer.Argument(help="What agents have to be able to do: all of these.")],
    where: Annotated[
        list[str] | None, typer.Option("--where", "-w", help="'price<5', tier=gold, 'lang in de,en'.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="So many at most.")] = None,
    max_age: Annotated[float | None, typer.Option(help="Who signed its record within so many seconds.")] = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Leave out those that do not answer.")] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which keys were read, and whom the search asked.")
    ] = False,
    seed: Seeds = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    timeout: Timeout = None,
    json: Json = False,
    jsonl: JsonLines = False,
) -> None:
    """Agents by what they can do."""
    from synapse_p2p.apps.cli.searching import find_as_said

    find_as_said(
        _screen(ctx),
        capabilities,
        where=where,
        limit=limit,
        max_age=max_age,
        probe=probe,
        explain=explain,
        seed=seed,
        network=network,
        network_key_file=network_key_file,
        data_dir=data_dir,
        timeout=timeout,
        json=json,
        jsonl=jsonl,
    )


@app.command()
def describe(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="A capability, an address, or an id.")],
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="So many agents at most.")] = None,
    seed: Seeds = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """What agents can do in full: schemas, attributes, endpoints."""
    from synapse_p2p.apps.cli import searching, views

    settings = _settings(seed, network, network_key_file, data_dir, timeout=timeout)
    _screen(ctx).print(_wait(searching.describe(settings, target, limit)), views.view_of_description, is_json=json)


@app.command()
def ask(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(help="A capability, an address, or an id.")],
    task: Annotated[str, typer.Argument(help="What is to be done; - reads it from standard input.")],
    context: Annotated[list[str] | None, typer.Option("--context", "-c", help="key=value, again for more.")] = None,
    context_file: Annotated[Path | None, typer.Option(help="A JSON object; --context goes over it.")] = None,
    idempotent: Annotated[bool, typer.Option("--idempotent", help="It may be done twice, so try others too.")] = False,
    budget: Annotated[int | None, typer.Option(min=1, help="Asks that it may come to in all.")] = None,
    seed: Seeds = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds for the task; 600 by default.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show what the agent says meanwhile.")] = False,
    json: Json = False,
    jsonl: JsonLines = False,
) -> None:
    """Have a task done by an agent with a capability."""
    from synapse_p2p.apps.cli import asking, views
    from synapse_p2p.apps.cli.arguments import context_of

    screen = _screen(ctx)
    settings = _settings(seed, network, network_key_file, data_dir)
    asking.check_asked(target, is_idempotent=idempotent, budget=budget)
    given = context_of(context or (), None if context_file is None else _text_in(context_file))
    asked = sys.stdin.read() if task == "-" else task
    if stream or jsonl:

        def on_item(item: Any) -> None:
            if jsonl:
                screen.emit({"item": item})
            elif not json:
                screen.show(views.view_of_answer({"result": item}))

        answer = _wait(
            asking.ask_streaming(
                settings,
                target,
                asked,
                on_item,
                context=given,
                timeout_s=timeout,
                is_idempotent=idempotent,
                budget=budget,
            )
        )
        if not json:
            screen.say(*views.attempts_lines(answer["attempts"]))
            return
    else:
        answer = _wait(
            asking.ask(
                settings, target, asked, context=given, timeout_s=timeout, is_idempotent=idempotent, budget=budget
            )
        )
    if not json:
        screen.say(*views.attempts_lines(answer["attempts"]))
    screen.print(answer, views.view_of_answer, is_json=json)


@app.command()
def call(
    ctx: typer.Context,
    place: Annotated[str, typer.Argument(help="HOST:PORT, ID@HOST:PORT, an id, legacy://HOST:PORT, or `here`.")],
    endpoint: Annotated[str, typer.Argument(help="The function's name.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Values, then name=value; JSON, else text.")] = None,
    seed: Seeds = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Run a function of one node."""
    from synapse_p2p.apps.cli import asking, views
    from synapse_p2p.apps.cli.arguments import call_arguments

    screen = _screen(ctx)
    settings = _settings(seed, network, network_key_file, data_dir, timeout=timeout)
    positions, names = call_arguments(arguments or ())
    answer = _wait(asking.call(settings, screen, place, endpoint, positions, names))
    screen.print(answer, views.view_of_answer, is_json=json)


@app.command()
def trace(
    ctx: typer.Context,
    target: Annotated[str | None, typer.Argument(help="An id, or a capability; a random key without.")] = None,
    seed: Seeds = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """One lookup, step by step: who was asked when, and why."""
    from synapse_p2p.apps.cli import tracing

    settings = _settings(seed, network, network_key_file, data_dir, timeout=timeout)
    _screen(ctx).print(_wait(tracing.trace(settings, target)), tracing.drawing, is_json=json)


@app.command()
def watch(
    ctx: typer.Context,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="End after so long.")] = None,
    network: Network = None,
    network_key_file: NetworkKeyFile = None,
    data_dir: DataDir = None,
    jsonl: JsonLines = False,
) -> None:
    """The swarm as the node on this machine sees it, live: agents, calls, who comes and who is lost."""
    from synapse_p2p.apps.cli import watching

    screen = _screen(ctx)
    settings = _settings(None, network, network_key_file, data_dir)
    emit = screen.emit if jsonl else None
    _wait(watching.watch(settings, screen, interval_s=interval, seconds=seconds, emit=emit))


@app.command()
def demo(
    ctx: typer.Context,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the swarm running until Ctrl-C, to look at it.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was measured, as one JSON object.")] = False,
) -> None:
    """24 agents on this machine find each other, share out work, and go on when eight are killed."""
    from synapse_p2p.apps.demo import demo as play

    _wait(play(_screen(ctx), keep=keep, is_json=json))


@ids.callback()
def show_ids(ctx: typer.Context, network: Network = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Who your nodes on this machine are."""
    if ctx.invoked_subcommand is None:
        show_id(ctx, None, network, data_dir, json)


@ids.command("show")
def show_id(
    ctx: typer.Context,
    path: Annotated[str | None, typer.Argument(help="A key file; without one, all of your nodes.")] = None,
    network: Network = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """The id in a key file, or of your nodes on this machine."""
    from synapse_p2p.apps.cli import identities, views

    found = identities.show(_settings(None, network, None, data_dir), path)
    _screen(ctx).print(found, views.view_of_keys, is_json=json)


@ids.command("new")
def new_id(ctx: typer.Context, path: Annotated[str, typer.Argument(help="A new file.")], json: Json = False) -> None:
    """A new key for a node, in a new file."""
    from synapse_p2p.apps.cli import identities, views

    _screen(ctx).print(identities.new(path), views.view_of_pairs, is_json=json)


@ids.command("new-network-key")
def new_network_key(
    ctx: typer.Context, path: Annotated[str, typer.Argument(help="A new file.")], json: Json = False
) -> None:
    """A new key for a network, in a new file: give a copy to every member."""
    from synapse_p2p.apps.cli import identities, views

    screen = _screen(ctx)
    screen.print(identities.new_network_key(path), views.view_of_pairs, is_json=json)
    if not json:
        screen.say(*screen.next_lines([f"up --network-key-file {shlex.quote(path)}"]))


@ids.command("network")
def show_network(
    ctx: typer.Context, network: Network = None, network_key_file: NetworkKeyFile = None, json: Json = False
) -> None:
    """Which network is meant, and the fingerprint of its key."""
    from synapse_p2p.apps.cli import identities, views

    found = identities.network(_settings(None, network, network_key_file, None))
    _screen(ctx).print(found, views.view_of_pairs, is_json=json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def simulate(ctx: typer.Context) -> None:
    """Real nodes on a virtual clock, and what goes wrong among them; `simulate list` says what there is to run."""
    from simulations.__main__ import main

    raise typer.Exit(main(ctx.args, program=ctx.command_path))


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def broadcast(ctx: typer.Context) -> None:
    """Of release 2: find, and ask each."""
    _screen(ctx).say_error(
        "there are no broadcasts any more: find who can do it, and ask", ["find CAPABILITY", "ask CAPABILITY TASK"]
    )
    raise typer.Exit(2)


@app.command("list-swarms", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def list_swarms(ctx: typer.Context) -> None:
    """Of release 2: status, and who is known."""
    _screen(ctx).say_error("swarms are not listed any more: a node knows its own", ["status", "peers"])
    raise typer.Exit(2)


def _settings(
    seed: list[str] | None,
    network: str | None,
    network_key_file: str | None,
    data_dir: str | None,
    *,
    timeout: float | None = None,
    listen: str | None = None,
    advertise: str | None = None,
) -> Settings:
    given = {
        "seed": seed,
        "network": network,
        "network-key-file": network_key_file,
        "data-dir": data_dir,
        "timeout": timeout,
        "listen": listen,
        "advertise": advertise,
    }
    return settled(given)


def _text_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        from synapse_p2p.exceptions import ConfigError

        raise ConfigError(f"{path} is no text in UTF-8") from error


def _screen(ctx: typer.Context) -> "Screen":
    from synapse_p2p.apps.cli.program import DEFAULT
    from synapse_p2p.apps.cli.screen import Screen

    return Screen(ctx.find_root().info_name or DEFAULT)


def _wait(work: Awaitable[T]) -> T:
    from synapse_p2p.apps.cli.waiting import wait  # here: the loop takes as long to load as the help to print

    return wait(work)

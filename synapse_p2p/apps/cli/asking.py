"""`ask` and `call`: have a task done, run one function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dht.exceptions import NoAgentFound
from synapse_p2p.apps.cli.connecting import (
    called,
    entered,
    nothing_found,
    operated_place,
    operator_client,
    place_of,
)
from synapse_p2p.apps.cli.exit_codes import CommandError, ExitCode
from synapse_p2p.apps.cli.screen import Screen
from synapse_p2p.apps.cli.searching import is_place
from synapse_p2p.apps.cli.settings import Settings
from synapse_p2p.client import Client
from synapse_p2p.exceptions import RemoteError
from synapse_p2p.network_key import read_network_key

if TYPE_CHECKING:
    from dht.results import Answer, Attempt

HERE = "here"
"""The place of the node on this machine."""
TASK_TIMEOUT_S = 600.0


def check_asked(target: str, *, is_idempotent: bool, budget: int | None) -> None:
    """Raises CommandError for options that mean nothing to the one who is asked."""
    given = [name for name, is_given in (("--idempotent", is_idempotent), ("--budget", budget is not None)) if is_given]
    if given and is_place(target):
        text = f"{' and '.join(given)} can be said of a capability, which several may have; {target} is one agent"
        raise CommandError(ExitCode.USAGE, text, "ask CAPABILITY TASK")


async def ask(
    settings: Settings,
    target: str,
    task: str,
    *,
    context: Mapping[str, Any],
    timeout_s: float | None,
    is_idempotent: bool,
    budget: int | None,
) -> dict[str, Any]:
    """The answer of some agent with a capability, or of the one at an address or with an id."""
    async with entered(place_of(settings), settings) as swarm:
        if is_place(target):
            result = await swarm.peer(target).ask(task, context, timeout=timeout_s or TASK_TIMEOUT_S)
            return {"result": result, "agent": None, "attempts": []}
        with _whom_to_look_for(settings):
            answer = await swarm.ask(
                target,
                task,
                context=context,
                timeout=timeout_s or TASK_TIMEOUT_S,
                idempotent=is_idempotent,
                budget=budget,
            )
    return _answer_map(answer)


async def ask_streaming(
    settings: Settings,
    target: str,
    task: str,
    on_item: Callable[[Any], None],
    *,
    context: Mapping[str, Any],
    timeout_s: float | None,
    is_idempotent: bool,
    budget: int | None,
) -> dict[str, Any]:
    """The same; `on_item` is told what the agent sends meanwhile, the answer included."""
    async with entered(place_of(settings), settings) as swarm:
        if is_place(target):
            result = None
            async for result in swarm.peer(target).stream_ask(task, context, timeout=timeout_s or TASK_TIMEOUT_S):
                on_item(result)
            return {"result": result, "agent": None, "attempts": []}
        stream = swarm.stream_ask(
            target,
            task,
            context=context,
            timeout=timeout_s or TASK_TIMEOUT_S,
            idempotent=is_idempotent,
            budget=budget,
        )
        with _whom_to_look_for(settings):
            async with stream:
                async for item in stream:
                    on_item(item)
    return _answer_map(stream.answer)


@contextlib.contextmanager
def _whom_to_look_for(settings: Settings) -> Generator[None]:
    """Within it nobody who could be asked is a CommandError, which names the search."""
    try:
        yield
    except NoAgentFound as error:
        raise nothing_found(str(error), (error.capability,), settings) from error


async def call(
    settings: Settings,
    screen: Screen,
    place: str,
    endpoint: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """What one function returns: of the node here, which takes us for its operator, of an address, or of an id."""
    try:
        return await _called(settings, screen, place, endpoint, args, kwargs)
    except RemoteError as error:
        if error.code != "not_found" or place.startswith("legacy://"):
            raise
        others = "call here _synapse.methods" if place == HERE else f"describe {place}"
        raise CommandError(ExitCode.NOTHING_FOUND, str(error), f"{others}{settings.place_flags}") from error


async def _called(
    settings: Settings,
    screen: Screen,
    place: str,
    endpoint: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    if place == HERE:
        local, node = operated_place(settings, screen)
        async with operator_client(local, node) as client:
            return {
                "result": await called(
                    node, client.with_options(timeout_s=settings.timeout_s), endpoint, *args, **kwargs
                )
            }
    if len(place) == 64 and is_place(place):
        async with entered(place_of(settings), settings) as swarm:
            peer = swarm.peer(place, timeout=settings.timeout_s)
            return {"result": await peer.call(endpoint, *args, **kwargs)}
    async with _client(settings, place) as client:
        return {"result": await client.call(endpoint, *args, **kwargs)}


def _client(settings: Settings, place: str) -> Client:
    """One server's client; no swarm is entered for it."""
    if place.startswith("legacy://"):
        return Client(place, timeout=settings.timeout_s)
    key_file = settings.network_key_file
    return Client(
        place,
        timeout=settings.timeout_s,
        network=settings.network or "",
        network_key=read_network_key(key_file) if key_file else None,
    )


def _answer_map(answer: Answer) -> dict[str, Any]:
    agent = {"id": answer.agent.id.hex(), "name": answer.agent.name, "role": answer.agent.role}
    return {"result": answer.result, "agent": agent, "attempts": [_attempt_map(each) for each in answer.attempts]}


def _attempt_map(attempt: Attempt) -> dict[str, Any]:
    return {
        "agent": attempt.agent.name,
        "id": attempt.agent.id.hex(),
        "end": attempt.end.value,
        "text": attempt.text,
        "took_s": round(attempt.took_s, 6),
        "why": attempt.why,
    }

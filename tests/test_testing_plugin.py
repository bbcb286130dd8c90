"""The pytest plugin, in runs of pytest within this one."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import sys
from typing import Any

import pytest

from simulations.world import World
from synapse_p2p import AgentNode, CallContext
from synapse_p2p.exceptions import ConfigError, Timeout
from synapse_p2p.testing import VirtualSwarm

pytest_plugins = ["pytester"]

LOADED_HERE_TOO = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
ARGUMENTS = ("-p", "synapse_p2p.testing", "-p", "no:cacheprovider", "-W", "error", "-W", LOADED_HERE_TOO)
WITHOUT_ASYNCIO = ("-p", "no:asyncio")
WITH_ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function", "--asyncio-mode")
ASYNCIO_MODES = [WITHOUT_ASYNCIO, (*WITH_ASYNCIO, "strict"), (*WITH_ASYNCIO, "auto")]

TWO_AGENTS = """
    import asyncio
    from synapse_p2p import AgentNode

    def echo():
        agent = AgentNode(name="Edda", role="echo", capabilities=["echo"])

        @agent.task_handler
        async def answer(task, context):
            return task

        return agent
"""


def run_tests(
    pytester: pytest.Pytester, source: str, *arguments: str, asyncio_mode: tuple[str, ...] = WITHOUT_ASYNCIO
) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess(*ARGUMENTS, *asyncio_mode, *arguments)


def note(pytester: pytest.Pytester) -> list[str]:
    """What the tests wrote down, by line."""
    return (pytester.path / "note").read_text(encoding="utf-8").splitlines()


NOTE_SEEDS = """
    from pathlib import Path

    def note(word):
        with Path("note").open("a", encoding="utf-8") as file:
            print(word, file=file)
"""


@pytest.mark.parametrize("mode", ASYNCIO_MODES, ids=["without pytest-asyncio", "strict", "auto"])
def test_async_test_runs_in_virtual_time_whatever_else_runs_async_tests(
    pytester: pytest.Pytester, mode: tuple[str, ...]
):
    source = f"""{TWO_AGENTS}
    async def test_it(swarm):
        await swarm.agent(echo())
        client = await swarm.client()
        await asyncio.sleep(3600)
        assert (await client.ask("echo", "hello")).result == "hello"
        assert asyncio.get_running_loop().time() > 3600
    """

    result = run_tests(pytester, source, asyncio_mode=mode)

    result.assert_outcomes(passed=1)


def test_plain_test_runs_its_main_as_often_as_it_likes(pytester: pytest.Pytester):
    source = f"""{TWO_AGENTS}
    def test_it(swarm):
        async def main():
            await swarm.agent(echo())
            await (await swarm.client()).ask("echo", "hello")
            return swarm.world.digest.hexdigest(), swarm.rng.random()

        first, again = swarm.run(main), swarm.run(main)
        assert first == again
        swarm.seed = 2
        assert swarm.run(main)[0] != first[0]
    """

    result = run_tests(pytester, source)

    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("keyword", ["async def", "def"])
def test_many_seeds_end_at_the_first_that_fails_with_the_command_that_shows_it_again(
    pytester: pytest.Pytester, keyword: str
):
    source = f"""{NOTE_SEEDS}
    {keyword} test_it(swarm):
        note(swarm.seed)
        assert swarm.seed != 3
    """

    result = run_tests(pytester, source, "--seeds", "9")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["failed with seed 3; to see the same again:", "pytest *.py::test_it --seed 3"])
    assert note(pytester) == ["1", "2", "3"]


def test_the_command_that_is_printed_shows_the_same_again(pytester: pytest.Pytester):
    source = f"""{NOTE_SEEDS}
    import pytest

    @pytest.mark.parametrize("size", ["small", "very large"])
    class TestAll:
        async def test_it(self, size, swarm, tmp_path):
            note((size, swarm.seed))
            assert tmp_path.exists() and (size == "small" or swarm.seed != 4)
    """
    first = run_tests(pytester, source, "--seeds", "5")
    command = next(line for line in first.outlines if line.startswith("pytest "))
    (pytester.path / "note").unlink()

    again = subprocess.run(
        [sys.executable, "-m", *shlex.split(command), *ARGUMENTS, *WITHOUT_ASYNCIO],
        capture_output=True,
        text=True,
        check=False,
        cwd=pytester.path,
    )

    first.assert_outcomes(passed=1, failed=1)
    assert again.returncode == 1
    assert note(pytester) == ["('very large', 4)"]


def test_every_seed_that_passes_makes_one_passed_test(pytester: pytest.Pytester):
    source = f"""{NOTE_SEEDS}
    async def test_it(swarm):
        note(swarm.seed)
    """

    result = run_tests(pytester, source, "--seeds", "4")

    result.assert_outcomes(passed=1)
    assert note(pytester) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(("arguments", "seed"), [((), "1"), (("--seed", "137"), "137")])
def test_one_seed_is_the_first_or_the_one_that_is_asked_for(
    pytester: pytest.Pytester, arguments: tuple[str, ...], seed: str
):
    source = f"""{NOTE_SEEDS}
    async def test_it(swarm):
        note(swarm.seed)
    """

    result = run_tests(pytester, source, *arguments)

    result.assert_outcomes(passed=1)
    assert note(pytester) == [seed]


@pytest.mark.parametrize("arguments", [("--seeds", "0"), ("--seed", "-1"), ("--seed", "x"), ("--seed=1", "--seeds=2")])
def test_seeds_that_cannot_be_are_refused(pytester: pytest.Pytester, arguments: tuple[str, ...]):
    result = run_tests(pytester, "def test_it(): pass", *arguments)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*whole number of 1 or more*" if "=" not in arguments[0] else "*leave one out*"])


def test_other_tests_and_others_fixtures_of_that_name_are_left_alone(pytester: pytest.Pytester):
    source = f"""{NOTE_SEEDS}
    import pytest

    @pytest.fixture
    def swarm():
        return "bees"

    def test_theirs(swarm):
        note(swarm)

    def test_without():
        note("without")
    """

    result = run_tests(pytester, source, "--seeds", "3")

    result.assert_outcomes(passed=2)
    assert note(pytester) == ["bees", "without"]


def test_a_test_that_waits_for_ever_fails_after_some_virtual_hours():
    swarm = VirtualSwarm()

    async def main() -> None:
        for name in ("Ada", "Bob"):
            await swarm.agent(AgentNode(name=name, role="worker"))
        await asyncio.Event().wait()

    with pytest.raises(Timeout, match="within 21600 virtual seconds"):
        swarm.run(main)


def test_a_skip_in_the_middle_is_a_skip(pytester: pytest.Pytester):
    source = """
    import pytest

    async def test_it(swarm):
        pytest.skip("not today")
    """

    result = run_tests(pytester, source, "--seeds", "3")

    result.assert_outcomes(skipped=1)
    assert "to see the same again" not in result.stdout.str()


def test_outside_of_a_run_there_is_no_world():
    with pytest.raises(ConfigError, match=r"within swarm\.run"):
        _ = VirtualSwarm().world


def test_after_a_run_that_failed_the_agents_are_stopped():
    swarm, agent = VirtualSwarm(), AgentNode(name="Ada", role="worker")

    async def main() -> None:
        await swarm.agent(agent)
        assert isinstance(swarm.world, World)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        swarm.run(main)

    assert agent.listening_addresses == ()


def test_another_seed_is_another_order_of_events():
    def order(seed: int) -> list[str]:
        swarm = VirtualSwarm(seed)

        async def main() -> list[str]:
            knocks: list[str] = []
            door = AgentNode(name="Dora", role="door", capabilities=["door"])

            @door.task_handler
            async def knock(task: str, context: dict[str, Any]) -> None:
                knocks.append(task)

            await swarm.agent(door)
            clients = [await swarm.client() for _ in range(3)]
            await asyncio.gather(*(client.ask("door", f"client {number}") for number, client in enumerate(clients)))
            return knocks

        return swarm.run(main)

    orders = [order(seed) for seed in range(1, 9)]

    assert all(sorted(knocks) == ["client 0", "client 1", "client 2"] for knocks in orders)
    assert any(knocks != orders[0] for knocks in orders)
    assert order(1) == orders[0]


def test_a_trace_travels_in_virtual_time_and_repeats_with_its_seed():
    trace, given = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    def traces(seed: int) -> list[str | None]:
        swarm = VirtualSwarm(seed)

        async def main() -> list[str | None]:
            came: list[str | None] = []
            first = AgentNode(name="Ann", role="lead", capabilities=["lead"])
            second = AgentNode(name="Bob", role="worker", capabilities=["work"])

            @first.task_handler
            async def lead(task: str, context: dict[str, Any], call: CallContext) -> None:
                came.append(call.traceparent)
                await call.swarm.ask("work", task)

            @second.task_handler
            async def work(task: str, context: dict[str, Any], call: CallContext) -> None:
                came.append(call.traceparent)

            await swarm.agent(first)
            await swarm.agent(second)
            client = await swarm.client()
            await client.ask("lead", "a task", traceparent=f"00-{trace}-{given}-01")
            await client.ask("lead", "another")
            return came

        return swarm.run(main)

    ann, bob, *untraced = traces(1)

    assert ann == f"00-{trace}-{given}-01"
    assert bob is not None
    assert bob.startswith(f"00-{trace}-")
    assert given not in bob
    assert untraced == [None, None]
    assert traces(1)[1] == bob != traces(2)[1]


def test_the_plugin_loads_no_simulator_until_a_test_asks_for_one():
    script = (
        "import sys, synapse_p2p.testing; sys.exit(any(name.split('.')[0] == 'simulations' for name in sys.modules))"
    )

    result = subprocess.run([sys.executable, "-c", script], check=False)

    assert result.returncode == 0

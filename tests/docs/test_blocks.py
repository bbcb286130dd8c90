"""Every Python block of README.md and docs/ is run by a test, or stands here with the reason why it is not.

A block is known by its page and its first line. Types of all blocks are checked in tests/typing.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ANY_FENCE = re.compile(r"^[ \t>]*(?:```|~~~)[ \t]*\{?\.?(?:python|py|pycon|ipython)", re.IGNORECASE | re.MULTILINE)

RUN_BY = {
    ("README.md", "# first.py"): "test_readme.py::test_two_agents_and_a_question",
    ("README.md", "# second.py"): "test_readme.py::test_two_agents_and_a_question",
    ("README.md", "# ask.py"): "test_readme.py::test_two_agents_and_a_question",
    ("README.md", "# server.py"): "test_readme.py::test_functions_over_tcp",
    ("README.md", "# client.py"): "test_readme.py::test_functions_over_tcp",
    ("README.md", "# reviewer.py"): "test_readme.py::test_an_agent_without_a_swarm",
    ("README.md", "# delegate.py"): "test_readme.py::test_an_agent_without_a_swarm",
    ("README.md", "# lifecycle.py"): "test_readme.py::test_program_prints_what_the_page_says",
    ("docs/how-to/identity.md", "# same_agent.py"): "test_identity_page.py::test_program_prints_what_the_page_says",
    ("docs/how-to/identity.md", "# own_key.py"): "test_identity_page.py::test_program_prints_what_the_page_says",
    ("docs/how-to/identity.md", "# checked_seed.py"): "test_identity_page.py::test_program_prints_what_the_page_says",
    ("docs/how-to/identity.md", "# closed_swarm.py"): "test_identity_page.py::test_program_prints_what_the_page_says",
    ("docs/how-to/identity.md", "# revoked.py"): "test_identity_page.py::test_program_prints_what_the_page_says",
    ("docs/how-to/rpc.md", "# who.py"): "test_readme.py::test_program_prints_what_the_page_says",
    ("docs/how-to/rpc.md", "# failures.py"): "test_readme.py::test_program_prints_what_the_page_says",
    ("docs/how-to/rpc.md", "# ticks.py"): "test_readme.py::test_program_prints_what_the_page_says",
    ("docs/how-to/rpc.md", "# json_wire.py"): "test_readme.py::test_program_prints_what_the_page_says",
    ("docs/how-to/find.md", "# market.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/tutorial/first_swarm.md", "# alone.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/tutorial/first_swarm.md", "# cook.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/tutorial/first_swarm.md", "# kitchen.py"): "test_readme.py::test_two_terminals_of_the_tutorial",
    ("docs/tutorial/first_swarm.md", "# table.py"): "test_readme.py::test_two_terminals_of_the_tutorial",
    ("docs/tutorial/first_swarm.md", "# nobody.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/tutorial/ten_agents.md", "# ten.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/deploy.md", "# worker.py"): "test_deploy_page.py::machines",
    ("docs/how-to/deploy.md", "# look.py"): "test_deploy_page.py::machines",
    ("docs/how-to/nat.md", "# client_only.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/persistence.md", "# twice.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/access.md", "# doors.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/access.md", "# busy.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    (
        "docs/how-to/command_line.md",
        "# reviewer.py",
    ): "test_command_line_page.py::test_every_command_prints_what_the_page_says",
    ("docs/how-to/streaming.md", "# tail.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/streaming.md", "# progress.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/streaming.md", "# upload.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/observe.md", "# numbers.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/observe.md", "# traces.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
    ("docs/how-to/values.md", "# values.py"): "test_how_to_pages.py::test_program_prints_what_the_page_says",
}
"""The test beside this file that runs a block; it names the program."""

NOT_RUN: dict[tuple[str, str], str] = {}
"""Why a block cannot be run, such as: it needs a second machine."""


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[tuple[str, str]]:
    name = page.relative_to(ROOT).as_posix()
    return [(name, block.splitlines()[0]) for block in BLOCK.findall(page.read_text(encoding="utf-8"))]


def source_of(test: str) -> str:
    """The text of a test, given as `file::name`, with its decorators."""
    file, _, name = test.partition("::")
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    node = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name)
    first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first_line - 1 : node.end_lineno])


def test_every_python_block_is_run_or_listed_with_its_reason():
    found = [block for page in pages() for block in blocks_of(page)]

    assert sorted(found) == sorted([*RUN_BY, *NOT_RUN])


@pytest.mark.parametrize("block", RUN_BY, ids=lambda block: block[1].removeprefix("# "))
def test_the_test_that_runs_a_block_names_its_program(block: tuple[str, str]):
    program = block[1].removeprefix("# ")

    source = source_of(RUN_BY[block])

    assert f'"{program}"' in source


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_stands_in_blocks_that_the_tests_see(page: Path):
    fences = ANY_FENCE.findall(page.read_text(encoding="utf-8"))

    assert len(fences) == len(blocks_of(page))

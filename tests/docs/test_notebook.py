"""The cells of the notebook, run as IPython runs them: in one loop, with `await` at the top level."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import pprint
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "notebook" / "agents.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def text_shown(cell: dict[str, Any]) -> str:
    """What the notebook has under a cell: what it printed, and then the value of its last expression."""
    shown = ""
    for output in cell["outputs"]:
        lines = output["text"] if output["output_type"] == "stream" else [*output["data"]["text/plain"], "\n"]
        shown += "".join(lines)
    return shown


async def run_cell(source: str, names: dict[str, Any]) -> None:
    """Run one cell; the value of an expression at its end is printed, like what it prints itself."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    await run_code(ast.Module(body, type_ignores=[]), "exec", names)
    if last is not None:
        value = await run_code(ast.Expression(last.value), "eval", names)
        if value is not None:
            pprint.pp(value)


async def run_code(tree: ast.Module | ast.Expression, mode: str, names: dict[str, Any]) -> Any:
    code = compile(tree, NOTEBOOK.name, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    return await result if code.co_flags & inspect.CO_COROUTINE else result


async def test_the_cells_show_what_the_notebook_shows_both_times_they_run(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = code_cells()

    for _ in range(2):
        for cell in cells:
            await run_cell("".join(cell["source"]), names)

            assert capsys.readouterr().out == text_shown(cell)

    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(left, timeout=5)  # a client learns a moment later that its server said goodbye
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [names[name].listening_addresses for name in ("server", "reviewer", "lead")] == [()] * 3


def test_no_cell_names_a_port():
    ports = [re.findall(r"port=(\w+)", "".join(cell["source"])) for cell in code_cells()]

    assert {port for found in ports for port in found} == {"0", "server", "reviewer", "lead"}

"""What the reviewer and the tester do with files that others have written."""

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

MAX_RUN_S = 20.0


def findings_of(text: str) -> list[str]:
    """What a reader misses: a docstring, or a type."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [f"line {error.lineno} is no Python"]
    findings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node) is None:
                findings.append(f"{node.name} has no docstring")
            if node.returns is None or any(argument.annotation is None for argument in node.args.args):
                findings.append(f"{node.name} does not name its types")
    return findings


def run_checks(files: Mapping[str, str], checks: Mapping[str, list[tuple[str, object]]]) -> dict[str, list[str]]:
    """Which expressions come to something else than they should, by the file that they are a check of."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder, name)
            if path.parent != Path(folder):
                raise ValueError(f"{name!r} is no file of this folder")  # a name from afar is not a path
            path.write_text(text, encoding="utf-8")
        command = [sys.executable, "-I", "-c", _RUNNER, folder]
        ended = subprocess.run(  # noqa: S603 - to run what the team wrote is the point
            command, input=json.dumps(checks), capture_output=True, text=True, timeout=MAX_RUN_S, check=True
        )
    return dict(json.loads(ended.stdout))


_RUNNER = """
import json, sys
sys.path.insert(0, sys.argv[1])
findings = {}
for file, expressions in json.load(sys.stdin).items():
    names = {}
    for expression, wanted in expressions:
        try:
            exec("from to_roman import *; from from_roman import *", names)
            found = eval(expression, names)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        if found != wanted:
            findings.setdefault(file, []).append(f"{expression} is {found!r}, not {wanted!r}")
print(json.dumps(findings))
"""

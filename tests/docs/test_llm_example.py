"""The example under docs/examples/llm_agent, with a service that has the chat interface, and with bad ones."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "llm_agent"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDEVMODE"}


@contextmanager
def service(answer: Callable[[dict[str, Any]], bytes], *, status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """The base URL of a service on this machine, and what it was asked: path, key and body of each request."""
    asked: list[Any] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            content = answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/", asked
        finally:
            server.shutdown()
            thread.join()


def message(**fields: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", **fields}}]}).encode()


def converse(body: dict[str, Any]) -> bytes:
    """As a model does: use a tool where one fits, and say in words what it said."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return message(content=f"I am told: {last['content']}")
    if "Fahrenheit" in last["content"]:
        function = {"name": "tool_fahrenheit", "arguments": '{"celsius": 37}'}
        return message(content=None, tool_calls=[{"id": "use-7", "type": "function", "function": function}])
    if "area" in last["content"]:
        function = {"name": "tool_area", "arguments": '{"length": "long"}'}
        return message(content=None, tool_calls=[{"id": "use-8", "type": "function", "function": function}])
    return message(content="A model.")


def test_a_service_with_the_chat_interface_answers_with_the_agents_as_its_tools():
    with service(converse) as (url, asked):
        environment = ENVIRONMENT | {"MODEL_URL": url, "MODEL": "some-model", "MODEL_KEY": "canary"}
        ended = subprocess.run(
            [sys.executable, "-W", "error", str(FOLDER / "main.py")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env=environment,
        )

    lines = ended.stdout.splitlines()
    assert ended.stderr == ""
    assert lines[1:3] == ["  uses tool_fahrenheit", "  I am told: 98.6 degrees Fahrenheit"]
    assert lines[5].startswith("  I am told: failed: ")  # arguments that do not fit the schema of the agent
    assert lines[-1] == "  A model."
    assert {(path, key, body["model"]) for path, key, body in asked} == {
        ("/v1/chat/completions", "Bearer canary", "some-model")
    }
    first, second, *_ = (body for _, _, body in asked)
    assert [tool["function"]["name"] for tool in first["tools"]] == ["tool_area", "tool_fahrenheit"]
    assert first["tools"][1]["function"]["parameters"]["required"] == ["celsius"]
    assert [turn["role"] for turn in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert second["messages"][2]["tool_calls"][0]["id"] == second["messages"][3]["tool_call_id"] == "use-7"


@pytest.fixture(scope="module")
def model() -> Iterator[ModuleType]:
    """The module of the seam."""
    spec = importlib.util.spec_from_file_location("model_of_the_example", FOLDER / "model.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"sorry", 500),
        (b"no JSON", 200),
        (b"[]", 200),
        (b'{"choices": []}', 200),
        (message(tool_calls=[{"id": "1"}]), 200),
        (message(tool_calls=[{"id": "1", "function": {"name": "x", "arguments": "{"}}]), 200),
        (message(tool_calls=[{"id": "1", "function": {"name": "x", "arguments": "[1]"}}]), 200),
        (message(content="x" * 2**20), 200),
    ],
)
async def test_a_service_that_gives_no_answer_is_an_error_of_the_model(model: ModuleType, content: bytes, status: int):
    with service(lambda _: content, status=status) as (url, _), pytest.raises(model.ModelError, match="127"):
        await model.HttpModel(url, "some-model").reply([model.Message("user", "hello")], [])


def test_a_model_is_reached_by_http_alone(model: ModuleType):
    with pytest.raises(ValueError, match="no URL of http"):
        model.HttpModel("file:///etc/passwd", "some-model")

"""The seam: what an agent wants of a model, and two that give it.

`HttpModel` speaks to any service with the chat interface that most have (`POST .../chat/completions`, OpenAI's own,
vLLM, llama.cpp, Ollama). `StandIn` is no model: it follows two rules, so that the example and its test run offline.
"""

import asyncio
import json
import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

MAX_ANSWER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Tool:
    """What a model may use: a name, what it is for, and the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """A tool that the model wants used, with these arguments."""

    id: str
    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn. `uses` are what the model asks for, `of` is the use whose result this is."""

    role: str  # "system", "user", "assistant" or "tool"
    text: str
    uses: Sequence[Use] = field(default=())
    of: str = ""


class ModelError(Exception):
    """The model could not be asked, or what it said is no answer."""


class Model(Protocol):
    """Anything that goes on with a conversation."""

    async def reply(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Message:
        """The next turn of the assistant: its last word, or the tools that it wants used. Raises ModelError."""
        ...


class StandIn:
    """NOT a model, but a stand-in for one that works offline: it uses the first tool whose description shares a long
    word with the question, with the numbers of the question, and then reads the result out.
    """

    async def reply(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Message:
        if messages[-1].role == "tool":
            return Message("assistant", f"It is {messages[-1].text}.")
        question = messages[-1].text
        words = set(re.findall(r"[a-z]{5,}", question.lower()))
        for tool in tools:
            if words & set(re.findall(r"[a-z]{5,}", tool.description.lower())):
                numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", question)]
                arguments = dict(zip(tool.parameters.get("properties", {}), numbers, strict=False))
                return Message("assistant", "", uses=[Use("1", tool.name, arguments)])
        return Message("assistant", "I have nobody to ask.")


class HttpModel:
    """A model behind a chat interface. `base_url` is such as `http://127.0.0.1:11434/v1`; the key goes nowhere else."""

    def __init__(self, base_url: str, model: str, *, key: str = "", timeout_s: float = 120.0) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"{base_url!r} is no URL of http or https")
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        self._key = key
        self._timeout_s = timeout_s

    async def reply(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Message:
        asked: dict[str, Any] = {"model": self._model, "messages": [_to_json(message) for message in messages]}
        if tools:
            asked["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": dict(tool.parameters),
                    },
                }
                for tool in tools
            ]
        try:
            answer = await asyncio.to_thread(self._post, json.dumps(asked).encode())
            return _read(json.loads(answer)["choices"][0]["message"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{self._url}: {type(error).__name__}: {error}") from error

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers)  # noqa: S310 - the scheme was looked at
        with urllib.request.urlopen(request, timeout=self._timeout_s) as response:  # noqa: S310
            content: bytes = response.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
        return content


def _to_json(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.uses:
        said["tool_calls"] = [
            {"id": use.id, "type": "function", "function": {"name": use.tool, "arguments": json.dumps(use.arguments)}}
            for use in message.uses
        ]
    if message.of:
        said["tool_call_id"] = message.of
    return said


def _read(said: Mapping[str, Any]) -> Message:
    uses = [
        Use(use["id"], use["function"]["name"], dict(json.loads(use["function"]["arguments"] or "{}")))
        for use in said.get("tool_calls") or ()
    ]
    return Message("assistant", said.get("content") or "", uses)

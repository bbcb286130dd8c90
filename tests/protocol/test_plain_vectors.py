"""The golden frames of the plain wire: what releases 1.3.1 and 2.5.0 write, and what we write, for ever."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from synapse_p2p.exceptions import InvalidMessageError
from synapse_p2p.messages import RPCError, RPCMessage, RPCRequest, RPCResponse
from synapse_p2p.protocol.plain import FrameReader, encode_frame
from synapse_p2p.serializers import MessagePackRPCSerializer

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "plain_messages.json").read_text(encoding="utf-8"))


def with_values(value: Any) -> Any:
    """A value of the file, with bytes and large integers as what they stand for."""
    match value:
        case str() if value.startswith("hex:"):
            return bytes.fromhex(value.removeprefix("hex:"))
        case str() if value.startswith("int:"):
            return int(value.removeprefix("int:"))
        case list():
            return [with_values(item) for item in value]
        case dict():
            return {key: with_values(item) for key, item in value.items()}
    return value


def entries(section: str) -> list[Any]:
    return [pytest.param(with_values(entry), id=entry["name"]) for entry in VECTORS[section]]


def message_of(fields: dict[str, Any]) -> RPCMessage:
    if fields["type"] == "request":
        return RPCRequest(**fields)
    error = fields["error"] and RPCError(**fields["error"])
    return RPCResponse(**{**fields, "error": error})


def payload_of(frame: bytes) -> bytes:
    payload = FrameReader(len(frame)).receive_data(frame)
    assert payload is not None
    assert len(payload) == len(frame) - 4
    return payload


@pytest.mark.parametrize("entry", entries("messages"))
def test_we_write_what_earlier_releases_write(entry: dict[str, Any]):
    payload = MessagePackRPCSerializer.serialize(message_of(entry["fields"]))

    assert encode_frame(payload).hex() == entry["frame"].hex()


@pytest.mark.parametrize("entry", entries("messages") + entries("read"))
def test_we_read_what_earlier_releases_write(entry: dict[str, Any]):
    message = MessagePackRPCSerializer.deserialize(payload_of(entry["frame"]))

    assert asdict(message) == entry["fields"]


@pytest.mark.parametrize("entry", entries("refused"))
def test_we_refuse_what_earlier_releases_refuse(entry: dict[str, Any]):
    payload = payload_of(entry["frame"])

    with pytest.raises(InvalidMessageError):
        MessagePackRPCSerializer.deserialize(payload)


def test_the_frames_of_the_file_differ():
    frames = [entry["frame"] for section in ("messages", "read", "refused") for entry in VECTORS[section]]

    assert len(set(frames)) == len(frames)

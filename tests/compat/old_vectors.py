"""The golden messages as an earlier release writes them, run by the interpreter of that release's environment.

Reads one Python literal, a list of the fields of messages, and prints one, the list of their frames.
"""

from __future__ import annotations

import ast
import sys

from synapse_p2p import RPCError, RPCRequest, RPCResponse
from synapse_p2p.framing import encode_frame
from synapse_p2p.serializers import MessagePackRPCSerializer


def frame_of(fields: dict) -> bytes:
    if fields["type"] == "request":
        message = RPCRequest(**fields)
    else:
        error = fields["error"] and RPCError(**fields["error"])
        message = RPCResponse(**{**fields, "error": error})
    frame = encode_frame(MessagePackRPCSerializer.serialize(message))
    assert MessagePackRPCSerializer.deserialize(frame[4:]) == message
    return frame


print([frame_of(fields) for fields in ast.literal_eval(sys.stdin.read())])

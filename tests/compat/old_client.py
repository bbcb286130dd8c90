"""A client of an earlier release, run by the interpreter of that release's environment.

Reads one Python literal, a list of calls `(endpoint, args, kwargs)`, and prints one, a list of `("returned", value)`
and `("raised", type, text)`. The port is its argument.
"""

from __future__ import annotations

import ast
import asyncio
import sys
from typing import Any

from synapse_p2p import Client


async def outcome_of(client: Any, endpoint: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    try:
        return ("returned", await client.call(endpoint, *args, **kwargs))
    except Exception as error:
        return ("raised", type(error).__name__, str(error))


async def main() -> None:
    client = Client(port=int(sys.argv[1]), timeout=20)
    print([await outcome_of(client, *call) for call in ast.literal_eval(sys.stdin.read())])


asyncio.run(main())

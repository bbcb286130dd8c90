"""What a swarm says of itself on the screen when it is run by hand: who and where it is, and how to find it.

Pure: a status comes in, text goes out.
"""

from __future__ import annotations

from dht.results import SwarmStatus
from synapse_p2p.transport.base import format_address, is_loopback, parse_address

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, never bound here
ANY_CAPABILITY = "anything"

_FIND_COMMAND = (
    "import asyncio{imports}; from dht import Swarm; r = asyncio.Runner(); "
    "s = Swarm(bootstrap=[{seed!r}]{network}{network_key}); r.run(s.start()); "
    "print(*r.run(s.find({capability!r})), sep='\\n'); r.run(s.stop()); r.close()"
)
# Asked for, because what is typed into a shell stays in its history.
_ASKED_KEY = ", network_key=bytes.fromhex(getpass.getpass('network key, in hexadecimal: '))"
_SAFE_IN_QUOTES = " -_./:"  # besides letters and digits; all else means something to some shell


def introduce(status: SwarmStatus, *, key_folder: str = "", has_network_key: bool = False) -> str:
    """Some lines for a person, among them a command to type in another terminal.

    `key_folder` is where the node's key is kept, empty where it is not.
    """
    advertised = ", ".join(status.advertised)
    if not advertised:
        advertised = "not yet known: no peer has told us how it sees us" if status.listening else "nowhere (a client)"
    lines = [
        f"id          {status.id.hex()}",
        f"listening   {', '.join(status.listening) or 'nowhere (a client)'}",
        f"advertised  {advertised}",
        f"joined      {status.seeds_joined} of {status.seeds_tried} seeds"
        if status.seeds_tried
        else "joined      no seeds: a first node",
    ]
    if key_folder:
        lines.append(f"key kept in {key_folder}")
    seed = next(iter(status.advertised or status.listening), None)
    if seed is not None:
        asks = " (it asks for the network key)" if has_network_key else ""
        command = find_command(status, seed, has_network_key=has_network_key)
        lines += [f"find it from another terminal with{asks}:", f"  {command}"]
    if not has_network_key and any(not is_loopback(parse_address(listening)[0]) for listening in status.listening):
        lines.append("open swarm: anyone who reaches this port may ask")
    return "\n".join(lines)


def find_command(status: SwarmStatus, seed: str, *, has_network_key: bool = False) -> str:
    """One line for a shell, which prints who offers the first capability of this agent."""
    host, port = parse_address(seed)
    code = _FIND_COMMAND.format(
        seed=format_address(WILDCARDS.get(host, host), port),
        network=f", network={_literal(status.network)}" if status.network else "",
        imports=", getpass" if has_network_key else "",
        network_key=_ASKED_KEY if has_network_key else "",
        capability=next(iter(status.capabilities), ANY_CAPABILITY),
    )
    return f'python -c "{code}"'


def _literal(text: str) -> str:
    """Text as Python reads it, whatever shell had it within double quotes before."""
    safe = (char if char.isalnum() or char in _SAFE_IN_QUOTES else f"\\U{ord(char):08x}" for char in text)
    return f"'{''.join(safe)}'"

"""Under which name the user called us, for the commands that we print. Pure."""

from __future__ import annotations

import os.path

MODULE = "python -m synapse_p2p"
DEFAULT = "synapse"


def program_name(first_argument: str) -> str:
    """`synapse`, `synapse-p2p`, or `python -m synapse_p2p`, by `sys.argv[0]`."""
    name = os.path.basename(first_argument)
    if name.endswith(".py"):
        return MODULE
    return name.removesuffix(".exe") or DEFAULT

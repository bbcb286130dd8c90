"""Where the processes of a measurement run, so that they differ in what is measured and not in where they landed."""

from __future__ import annotations

import shutil
import subprocess


def fixed_layout() -> tuple[str, ...]:
    """What a command begins with to have its code at the same addresses as all others; nothing where the system has no
    such thing, or does not allow it, as in most containers.
    """
    command = ("setarch", "-R")
    if shutil.which(command[0]) is None or subprocess.run([*command, "true"], check=False).returncode != 0:
        return ()
    return command

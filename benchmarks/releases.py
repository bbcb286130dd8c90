"""Earlier releases and other systems as published, each in a virtual environment of its own, to run beside this one.

The environments lie in `.venv-compat/` and are made where they are missing. Nothing of them is imported here: they are
other programs, spoken to over TCP or run as processes.
"""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

RELEASES = ("1.3.1", "2.5.0")
OURS = "synapse-p2p"
ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venv-compat"

_TELL_RELEASE = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"


def python_of(release: str, distribution: str = OURS, *, beside: tuple[str, ...] = ()) -> Path:
    """The interpreter of an environment that holds this release, of this package or of another distribution, with
    others `beside` it, as pip names them.

    Raises subprocess.CalledProcessError when it cannot be installed; pip has said why on stderr then.
    """
    folder = ENVIRONMENTS / (release if distribution == OURS else f"{distribution}-{release}")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _installed_release(python, distribution) != release:
        venv.create(folder, clear=True, with_pip=True)
        install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            f"{distribution}=={release}",
            *beside,
        ]
        subprocess.run([python, *install], check=True)
    return python


def _installed_release(python: Path, distribution: str) -> str:
    """The release that an interpreter would import; empty where there is no interpreter or no release."""
    try:
        told = subprocess.run(
            [python, "-I", "-c", _TELL_RELEASE, distribution], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return told.stdout.strip()

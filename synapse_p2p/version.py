"""The release that is installed."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def installed_version() -> str:
    """The version of the installed distribution; "0.0.0" when run from files that were never installed."""
    try:
        return metadata.version("synapse-p2p")
    except metadata.PackageNotFoundError:
        return "0.0.0"

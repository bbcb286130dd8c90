"""What all tests share: hypothesis without deadlines and with few examples, for the machines that run them are shared
and slow at times; and a folder for keys, so that no test and no process of one writes to the home of whoever runs them.
"""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from synapse_p2p.transport.spoken import SPOKEN

# A model that needs more examples says so itself. `pytest --hypothesis-profile thorough` is for a night.
settings.register_profile("project", deadline=None, print_blob=True, max_examples=50)
settings.register_profile("thorough", settings.get_profile("project"), max_examples=1000)
settings.load_profile("project")

BYTECODE = Path(__file__).parents[1] / "build" / "bytecode"

_state_folder = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A job in the background of a shell ignores it, and so would the processes that tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_state_folder] = tempfile.TemporaryDirectory(prefix="synapse-tests-")
    os.environ["XDG_STATE_HOME"] = config.stash[_state_folder].name  # heard on every system
    # Hundreds of tests start processes: where nothing compiled is kept, each compiles all that it imports, for 0.3 s.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(BYTECODE)
    if sys.dont_write_bytecode:  # and every worker writes pytest's asserts into all the tests anew, for 10 s
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(BYTECODE)


@pytest.fixture(autouse=True)
def _no_address_has_spoken() -> Iterator[None]:
    """The system hands out the ports of ended servers again: what was learnt of one must not outlast its test."""
    yield
    SPOKEN.clear()


def pytest_collection_finish() -> None:
    # Six thousand tests and what they import: every whole collection would go through them, half a second each time.
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _state_folder in config.stash:
        config.stash[_state_folder].cleanup()

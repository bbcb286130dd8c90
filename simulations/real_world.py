"""What is kept out of a simulation: threads, processes, sockets, signals and blocking sleep. And what is told of.

Code that is simulated can reach the real world without asking the event loop. While a virtual loop runs in a thread,
calls that would leave the simulation raise NotSimulated there. Calls that read the real clock or draw from chance that
is not the seed's go through, for a library may need them; but the first of each kind that comes from the user's own
code is told of with a NotRepeatableWarning.

These functions belong to the whole process. So this file replaces them for the whole process, from the start of the
first run to the end of the last, and each replacement asks whether its own thread is in a run. What somebody else has
replaced before, such as a test with a clock of its own, stays theirs. A module that did `from time import sleep` is
served too. Not seen are a function that was put into a container or an attribute before the run, and `datetime.now()`
and `utcnow()`, methods of a built-in type that takes no replacement (`today()` is seen: it asks `time`). A subclass in
its place would break `isinstance` and pickles of the user's, and a look at every call costs more than the simulation.
"""

from __future__ import annotations

import _thread
import asyncio
import functools
import multiprocessing.process
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

from synapse_p2p.exceptions import SynapseError
from synapse_p2p.whose_code import is_library

Namespace: TypeAlias = Any
"""A module or a class: what has attributes that can be replaced."""

CALL_DIRECTLY = "call the function directly; in a simulation it takes no time"
LEAVE_OUT_PROCESSES = "leave processes and pipes out of simulated code"
LEAVE_OUT_SIGNALS = "let the scenario stop the node"
USE_VIRTUAL_NETWORK = "talk to other nodes through simulations.network"
_SLEEP_BY_LOOP = "await asyncio.sleep(), in a handler that is `async def`"
_ASK_LOOP = "ask asyncio.get_running_loop().time(), the clock of the simulation"
_DRAW_FROM_SEED = "draw from a random.Random(seed) of your own or from the rng of the world"

_REFUSED: tuple[tuple[Namespace, str, str], ...] = (
    (time, "sleep", _SLEEP_BY_LOOP),
    (asyncio, "to_thread", CALL_DIRECTLY),
    (threading.Thread, "start", CALL_DIRECTLY),
    (_thread, "start_new_thread", CALL_DIRECTLY),
    (ThreadPoolExecutor, "submit", CALL_DIRECTLY),
    (multiprocessing.process.BaseProcess, "start", LEAVE_OUT_PROCESSES),
    (subprocess.Popen, "__init__", LEAVE_OUT_PROCESSES),
    *((os, name, LEAVE_OUT_PROCESSES) for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system")),
    *((signal, name, LEAVE_OUT_SIGNALS) for name in ("signal", "alarm", "setitimer")),
    *((socket.socket, name, USE_VIRTUAL_NETWORK) for name in ("connect", "connect_ex", "bind", "sendto", "sendmsg")),
    *((socket, name, USE_VIRTUAL_NETWORK) for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex")),
    *((socket, name, USE_VIRTUAL_NETWORK) for name in ("gethostbyaddr", "getnameinfo")),
)
"""Where, what, and what to do instead. A name that this system does not have is passed over."""

_CHANCE_THAT_IS_NOT_DRAWN = ("seed", "getstate", "setstate")

_WATCHED: tuple[tuple[Namespace, str, str], ...] = (
    *((time, f"{name}{unit}", _ASK_LOOP) for name in ("time", "monotonic", "perf_counter") for unit in ("", "_ns")),
    *(
        (random, name, _DRAW_FROM_SEED)
        for name in random.__all__
        if isinstance(getattr(getattr(random, name), "__self__", None), random.Random)
        and name not in _CHANCE_THAT_IS_NOT_DRAWN
    ),
    *((uuid, name, "make it with uuid.UUID(int=rng.getrandbits(128))") for name in ("uuid1", "uuid4")),
)


class NotSimulated(SynapseError, NotImplementedError):
    """Simulated code asked for the real world. `what` is the call, `fix` what to do instead."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} reaches outside of the simulation: {fix}")
        self.what = what
        self.fix = fix


class NotRepeatableWarning(UserWarning):
    """The user's code read what no seed decides, so that two runs of one seed may differ."""


class KeptOut:
    """A context: inside it this thread stays within the simulation. To be used again and again, by one loop.

    Warns of each call that does not repeat once in its life, so once a loop.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._outer: KeptOut | None = None

    def __enter__(self) -> KeptOut:
        self._outer = _patches.enter(threading.get_ident(), self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _patches.leave(threading.get_ident(), self._outer)

    def tell(self, what: str, fix: str) -> None:
        """Warn that the function two frames above called `what`, if that is the user's and it is the first time."""
        caller = sys._getframe(2)
        if what in self._told or is_library(caller.f_code.co_filename):
            return
        self._told.add(what)
        message = f"{what} gives something else in every run, so this seed will not repeat: {fix}"
        warnings.warn(message, NotRepeatableWarning, stacklevel=3)


@dataclass(frozen=True, slots=True)
class _Patch:
    """One function of the process and what stands in its place while something is simulated."""

    owner: Namespace
    name: str
    original: Any
    replacement: Callable[..., Any]
    is_inherited: bool  # then nothing is there to put back

    def put(self) -> bool:
        """Replace the function, unless somebody else has done so; whether it was replaced."""
        if getattr(self.owner, self.name) is not self.original:
            return False
        setattr(self.owner, self.name, self.replacement)
        return True

    def take_back(self) -> None:
        if vars(self.owner).get(self.name) is not self.replacement:
            return
        if self.is_inherited:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


class _Patches:
    """All replacements of the process, and the threads that are in a run.

    Invariant, whenever no one holds the lock: the replacements are in place if and only if some thread is in a run.
    """

    def __init__(self) -> None:
        self.kept_out: dict[int, KeptOut] = {}  # by thread
        self._lock = threading.Lock()
        self._all = tuple(_make_patches(self.kept_out))
        # Functions of modules: who imported one by its name holds it under a name of their own.
        self._by_original = {id(patch.original): patch for patch in self._all if not isinstance(patch.owner, type)}
        self._placed: list[_Patch] = []
        self._renamed: list[tuple[dict[str, Any], str, _Patch]] = []
        self._library_modules: set[str] = set()  # names of those that were looked at; at most what is imported

    def enter(self, thread: int, kept_out: KeptOut) -> KeptOut | None:
        """Put a thread into a run; what it was in before."""
        with self._lock:
            if not self.kept_out:
                self._placed = [patch for patch in self._all if patch.put()]
                self._rename()
            outer = self.kept_out.get(thread)
            self.kept_out[thread] = kept_out
            return outer

    def leave(self, thread: int, outer: KeptOut | None) -> None:
        """Take a thread out of its run, back into `outer`."""
        with self._lock:
            if outer is not None:
                self.kept_out[thread] = outer
                return
            del self.kept_out[thread]
            if self.kept_out:
                return
            for patch in self._placed:
                patch.take_back()
            for names, name, patch in self._renamed:
                if names.get(name) is patch.replacement:
                    names[name] = patch.original
            self._placed, self._renamed = [], []

    def _rename(self) -> None:
        """Replace functions where modules of the user have them under names of their own."""
        placed = set(map(id, self._placed))
        for module_name in sys.modules.keys() - self._library_modules:
            module = sys.modules.get(module_name)
            if not isinstance(module, ModuleType) or not _is_users(module):
                self._library_modules.add(module_name)
                continue
            names = vars(module)
            for name, value in list(names.items()):  # a copy, for other threads may import meanwhile
                patch = self._by_original.get(id(value))
                if patch is not None and id(patch) in placed and value is patch.original:
                    self._renamed.append((names, name, patch))
        for names, name, patch in self._renamed:
            names[name] = patch.replacement


def _is_users(module: ModuleType) -> bool:
    # What has no file is built in, but for the program of `python -c` and of a notebook.
    return module.__name__ == "__main__" or not is_library(str(getattr(module, "__file__", None) or "<frozen "))


def _make_patches(kept_out: dict[int, KeptOut]) -> Iterator[_Patch]:
    for table, replace in ((_REFUSED, _refused), (_WATCHED, _watched)):
        for owner, name, fix in table:
            original = getattr(owner, name, None)
            if original is not None:
                replacement = replace(original, f"{_path(owner, name)}()", fix, kept_out)
                yield _Patch(owner, name, original, replacement, name not in vars(owner))


def _refused(original: Callable[..., Any], what: str, fix: str, kept_out: dict[int, KeptOut]) -> Callable[..., Any]:
    get_ident = threading.get_ident

    @functools.wraps(original)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if get_ident() in kept_out:
            raise NotSimulated(what, fix)
        return original(*args, **kwargs)

    return refuse


def _watched(original: Callable[..., Any], what: str, fix: str, kept_out: dict[int, KeptOut]) -> Callable[..., Any]:
    get_ident = threading.get_ident

    @functools.wraps(original)
    def watch(*args: Any, **kwargs: Any) -> Any:
        if (run := kept_out.get(get_ident())) is not None:
            run.tell(what, fix)
        return original(*args, **kwargs)

    return watch


def _path(owner: Namespace, name: str) -> str:
    """How a call is written: `time.sleep`, `threading.Thread.start`, `subprocess.Popen`."""
    if not isinstance(owner, type):
        return f"{owner.__name__}.{name}"
    path = f"{owner.__module__}.{owner.__qualname__}"
    return path if name == "__init__" else f"{path}.{name}"


_patches = _Patches()

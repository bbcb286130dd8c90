"""Programs that run until they are told to end: an event loop of their own, and the signals that end it.

Owns the signal handlers while such a program runs, and puts back what was there; and what is said of a mistake of its
user's that ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from synapse_p2p.background import TaskScope
from synapse_p2p.exceptions import ConfigError, SynapseError

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_program(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], *, instead: str) -> None:
    """`run_until_signal` as the last line of a program: what its user can mend, any SynapseError and OSError, ends it
    with a sentence on the screen and exit code 1. A traceback would show our lines, and nothing of theirs.

    Raised as it is in a running event loop, such as a notebook's, and in another thread than the first: what ends there
    is not the program.
    """
    try:
        run_until_signal(main, instead=instead)
    except (SynapseError, OSError) as error:
        if _is_in_loop() or threading.current_thread() is not threading.main_thread():
            raise
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SystemExit(f"Error: {text}") from error


def run_until_signal(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], *, instead: str) -> None:
    """Run `main` in a loop of its own, with an event that SIGINT and SIGTERM set; a second signal ends the process.

    The loop is one of uvloop where that is installed (extra `fast`), else asyncio's own. Raises ConfigError inside a
    running event loop, naming what to write `instead`. Logs go to the screen if nobody set up logging.
    """
    if _is_in_loop():
        raise ConfigError(f"run() starts an event loop of its own; in a running one use {instead}")
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    async def run() -> None:
        signalled = asyncio.Event()
        with _signals_set(signalled):
            await main(signalled)

    # KeyboardInterrupt: where signals cannot be caught, Ctrl-C is one, and `main` was cancelled.
    with (
        _signals_restored(),
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=fastest_loop()) as runner,
    ):
        runner.run(run())


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes an event loop of uvloop; None where that is not installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


async def first_set(*events: asyncio.Event) -> None:
    """Return when one of these events is set."""
    async with TaskScope("wait for an event") as scope:
        ended: asyncio.Queue[None] = asyncio.Queue()
        for event in events:
            scope.spawn(event.wait()).add_done_callback(lambda _: ended.put_nowait(None))
        await ended.get()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _signals_set(event: asyncio.Event) -> Iterator[None]:
    """Within it, a first SIGINT or SIGTERM sets the event; from then on the system ends the process at a second one.

    Not so KeyboardInterrupt: it would only cancel, and so wait for handlers that ignore it and threads that block.
    """
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def release() -> list[signal.Signals]:
        released = list(caught)
        while caught:
            loop.remove_signal_handler(caught.pop())
        return released

    def on_signal() -> None:
        for number in release():
            signal.signal(number, signal.SIG_DFL)
        event.set()

    # Windows has none of this, nor has any thread but the first: Ctrl-C cancels the main task there.
    with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
        for number in ENDING_SIGNALS:
            loop.add_signal_handler(number, on_signal)
            caught.append(number)
    try:
        yield
    finally:
        release()


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """After it, SIGINT and SIGTERM do what they did before."""
    handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        # Only the first thread may set handlers, and one that no Python code set (None) cannot be set again.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None:
                    signal.signal(number, handler)

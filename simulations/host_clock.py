"""The clocks of one host, which can be wrong."""

from __future__ import annotations

from dataclasses import replace

from simulations.network import EPOCH_S, VirtualHost
from simulations.virtual_loop import VirtualLoop


class HostClock:
    """What a host's process reads. The wall clock never stands still; the monotonic one never goes back.

    `skew_s` is how far the wall clock is ahead.
    """

    def __init__(self, loop: VirtualLoop, host: VirtualHost) -> None:
        self.skew_s = 0.0
        self._loop = loop
        self._slept_s = 0.0  # before the latest sleep
        self._fell_asleep_s = self._wakes_s = 0.0  # the latest, in seconds of the loop
        host.runtime = replace(host.runtime, now=self.now, unix_now=self.unix_now)

    def now(self) -> float:
        """Monotonic seconds: those of the loop, without the time that the machine slept."""
        now_s = self._loop.time()
        return now_s - self._slept_s - (min(now_s, self._wakes_s) - self._fell_asleep_s)

    def unix_now(self) -> float:
        """Wall seconds."""
        return EPOCH_S + self._loop.time() + self.skew_s

    def sleep(self, duration_s: float) -> None:
        """Let the monotonic clock stand from now on. Nothing of the host may run meanwhile: it would wait for ever."""
        now_s = self._loop.time()
        if now_s >= self._wakes_s:
            self._slept_s += self._wakes_s - self._fell_asleep_s
            self._fell_asleep_s = now_s
        self._wakes_s = max(self._wakes_s, now_s + duration_s)

    def wake(self) -> None:
        """Let it go on; nothing happens to one that goes."""
        self._wakes_s = min(self._wakes_s, self._loop.time())

"""What a run tells while it goes, how it is asked to end, and the line that people see."""

from __future__ import annotations

import io
import shutil

import pytest

from simulations.progress import PAUSE_S, ProgressLine, Step, Watch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screens(self) -> list[str]:
        """What stood on the line, one after the other."""
        return [shown.removesuffix("\033[K") for shown in self.getvalue().split("\r")[1:]]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(done: int = 1, of: int = 10, *, events: int = 0, success: float | None = None) -> Step:
    return Step("lookups", done, of, virtual_s=1234.56, events=events, success=success)


def test_line_has_phase_virtual_time_events_per_second_and_success():
    terminal, clock = Terminal(), Clock()
    line = ProgressLine(terminal, clock=clock)
    clock.now += 2

    line.show(step(5, 10, events=5000, success=0.5))

    (shown,) = terminal.screens()
    assert shown == "lookups [#####.....] 5/10 virtual 1,235 s, 50.00% found, 2,500 events/s"


def test_events_per_second_are_those_since_the_line_was_shown_last():
    terminal, clock = Terminal(), Clock()
    line = ProgressLine(terminal, clock=clock)
    clock.now += 1
    line.show(step(1, events=1000))
    clock.now += 2

    line.show(step(2, events=1500))

    assert ["250 events/s" in shown for shown in terminal.screens()] == [False, True]


def test_line_is_not_written_more_often_than_people_see_but_every_phase_shows_its_end():
    terminal, clock = Terminal(), Clock()
    line = ProgressLine(terminal, clock=clock)

    for done in range(1, 11):
        line.show(step(done))
        clock.now += PAUSE_S / 5

    assert [shown.split("] ")[1].split()[0] for shown in terminal.screens()] == ["1/10", "6/10", "10/10"]


def test_line_is_never_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()

    ProgressLine(terminal, clock=Clock()).show(step())

    assert shutil.get_terminal_size().columns == 30
    assert [len(shown) for shown in terminal.screens()] == [29]


def test_line_is_empty_in_the_end():
    terminal = Terminal()
    line = ProgressLine(terminal, clock=Clock())
    line.show_cells(3, 4, 1)

    line.end()

    assert terminal.screens() == ["cells [#######...] 3/4 1 failed", ""]


def test_nothing_is_written_where_nobody_looks():
    stream = io.StringIO()
    line = ProgressLine(stream, clock=Clock())

    line.show(step())
    line.show_cells(1, 2, 0)
    line.end()

    assert stream.getvalue() == ""


def test_a_watch_passes_every_step_on():
    shown: list[Step] = []

    Watch(shown.append).tell(step())
    Watch().tell(step())

    assert shown == [step()]


@pytest.mark.parametrize("is_wished_first", [True, False])
def test_an_interrupt_reaches_the_run_whether_it_comes_before_or_after_its_start(is_wished_first: bool):
    watch = Watch()
    stops: list[str] = []

    if is_wished_first:
        watch.interrupt()
        watch.on_interrupt(lambda: stops.append("stop"))
    else:
        watch.on_interrupt(lambda: stops.append("stop"))
        assert stops == []
        watch.interrupt()

    assert (stops, watch.is_interrupted) == (["stop"], True)

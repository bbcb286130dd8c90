"""The page of a run and of a sweep with its pictures, as matplotlib draws them."""

from __future__ import annotations

import base64
import json
import struct
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from simulations.__main__ import main
from simulations.pictures.drawing import DOTS_PER_IN, WIDTH_IN, draw
from simulations.pictures.page import MAX_ROWS, PAGE_NAME, write_run_page, write_sweep_page
from simulations.pictures.run import pictures_of_run
from simulations.report import Report, run_scenario
from simulations.scenarios import SCENARIOS, Settings
from simulations.sweep import CellEnd

COMMAND = "python -m simulations run lookups --nodes 30"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    return Page((folder / PAGE_NAME).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run() -> Report:
    return run_scenario(SCENARIOS["lookups"], Settings(30, 20, 1))


def test_a_page_has_all_pictures_in_itself_and_needs_nothing_else(run: Report, tmp_path: Path):
    path = write_run_page(run, COMMAND, tmp_path, "run")

    page = page_of(tmp_path)
    names = ["hops", "latency", "success", "load", "circle"]
    assert path == tmp_path / PAGE_NAME
    assert {file.name for file in tmp_path.iterdir()} == {PAGE_NAME, *(f"run.{name}.png" for name in names)}
    for image, name in zip(page.all("img"), names, strict=True):
        head, _, data = (image["src"] or "").partition(",")
        png = base64.b64decode(data)
        assert head == "data:image/png;base64"
        assert png == (tmp_path / f"run.{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert struct.unpack(">I", png[16:20]) == (round(WIDTH_IN * DOTS_PER_IN),)
        assert len(image["alt"] or "") > 20
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert not any("href" in attributes for _, attributes in page.tags)
    assert COMMAND in page.text
    assert run.figures["digest"] in page.text
    assert "Success against the dead" in page.text


def test_the_same_run_is_drawn_as_the_same_bytes(run: Report):
    picture = pictures_of_run(run.figures, run.samples)[0][0]

    assert draw(picture) == draw(picture)


def test_what_a_run_says_is_text_and_never_html(tmp_path: Path):
    evil = "</pre><script>alert(1)</script>"
    figures = {"scenario": "x", "nodes": 3, "notes": [evil], "error": evil, "passed": False, "interrupted": False}

    write_run_page(Report(figures, "failed"), evil, tmp_path, "run")

    page = page_of(tmp_path)
    assert not page.all("script")
    assert page.text.count(evil) == 4  # in the verdict, the command, the table and the notes
    assert [file.name for file in tmp_path.iterdir()] == [PAGE_NAME]


@pytest.mark.parametrize(
    ("passed", "interrupted", "said"),
    [(True, False, "It passed."), (False, False, "It FAILED: lookups failed."), (False, True, "It was interrupted")],
)
def test_a_page_says_how_the_run_ended_and_without_pictures_needs_no_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool, interrupted: bool, said: str
):
    monkeypatch.delitem(sys.modules, "simulations.pictures.drawing")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    figures = {"scenario": "x", "nodes": 3, "notes": [], "error": None, "passed": passed, "interrupted": interrupted}

    write_run_page(Report(figures), COMMAND, tmp_path, "run")

    assert said in page_of(tmp_path).text


def test_a_sweep_has_its_pictures_and_its_cells_up_to_a_bound(tmp_path: Path):
    settings = {"sabotage": ""}
    ends = [
        CellEnd(
            Settings(60, 100, seed),
            {
                "lookups": 100,
                "lookup_success": 1 - share / 2,
                "nodes": 60,
                "settings": settings,
                "dead_share": share,
                "massacres": massacres,
                "passed": True,
            },
        )
        for seed, (share, massacres) in enumerate([(0.3, 1), (0.5, 1), (0.3, 6)])
    ]
    ends += [CellEnd(Settings(60, 100, seed), None, "killed") for seed in range(3, MAX_ROWS + 2)]

    write_sweep_page("overlay-massacre", ends, 2000, tmp_path)

    page = page_of(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {PAGE_NAME, "sweep-overlay-massacre.dead.png"}
    assert len(page.all("tr")) == 1 + MAX_ROWS
    assert "3 of 1,002 finished runs passed; the sweep has 2,000." in page.text
    assert "2 more are in their files alone" in page.text


def test_a_run_of_which_pictures_are_kept_is_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["run", "lookups", "--nodes", "10", "--lookups", "5", "--json"]
    plain = main(arguments), json.loads(capsys.readouterr().out)

    kept = main([*arguments, "--out", str(tmp_path)]), json.loads(capsys.readouterr().out)

    assert (plain[0], plain[1]["digest"]) == (kept[0], kept[1]["digest"]) == (0, kept[1]["digest"])
    assert plain[1]["messages"] == kept[1]["messages"]
    assert "lookups-n10-l5-s1.circle.png" in {path.name for path in tmp_path.iterdir()}


def test_a_sweep_has_a_page_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = main(["sweep", "lookups", "--nodes", "3,4", "--lookups", "5", "--workers", "1", "--out", str(tmp_path)])

    assert (code, capsys.readouterr().err) == (0, "")
    assert {"report.html", "sweep-lookups.size.png"} < {path.name for path in tmp_path.iterdir()}
    assert "2 of 2 finished runs passed" in page_of(tmp_path).text


def test_without_matplotlib_the_figures_are_kept_and_one_sentence_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "simulations.pictures.drawing")

    code = main(["run", "lookups", "--nodes", "3", "--lookups", "2", "--json", "--out", str(tmp_path)])

    said = capsys.readouterr()
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lookups-n3-l2-s1.json"]
    assert json.loads(said.out)["passed"] is True
    assert said.err.count("\n") == 1
    assert "matplotlib is not installed; type pip install 'synapse-p2p[plots]'" in said.err

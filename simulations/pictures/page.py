"""The page of a run or a sweep, one file that needs nothing else, and its pictures, each a PNG beside it.

Owns what the page says; what is drawn is in `run.py`, `sweep.py` and `circle.py`. Whoever writes one needs matplotlib.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from simulations.pictures.run import pictures_of_run
from simulations.pictures.shapes import LeftOut, Picture
from simulations.pictures.sweep import pictures_of_sweep
from simulations.report import Report, write_whole
from simulations.sweep import CellEnd

PAGE_NAME = "report.html"
MAX_ROWS = 1_000
"""Cells that a page lists. Each has a file of its own."""
_COLUMNS = ("lookups", "lookup_success", "mean_hops", "messages", "virtual_s", "wall_s", "passed")
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #d0d0d0; --quiet: #595959 }}
@media (prefers-color-scheme: dark) {{ :root {{ --line: #505050; --quiet: #b0b0b0 }} }}
body {{ max-width: 940px; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif }}
code, pre {{ font-size: 14px; overflow-wrap: anywhere; white-space: pre-wrap }}
figure {{ margin: 0 0 2.5rem }}
img {{ width: 900px; max-width: 100%; height: auto; background: #fff; border-radius: 6px }}
figcaption, .quiet {{ color: var(--quiet); font-size: 14px }}
table {{ border-collapse: collapse; font-size: 14px; display: block; overflow-x: auto }}
th, td {{ border-bottom: 1px solid var(--line); padding: 2px 12px 2px 0; text-align: left; overflow-wrap: anywhere }}
</style>
</head>
<body>
<h1>{title}</h1>
"""


def write_run_page(report: Report, command: str, folder: Path, stem: str) -> Path:
    """Draw what a run has, as `stem`.NAME.png in `folder` and on the page there; the path of the page. `command` plays
    the same again.

    Raises OSError, and where there are pictures and no matplotlib ModuleNotFoundError, before anything is written.
    """
    pictures, left_out = pictures_of_run(report.figures, report.samples)
    shown = {name: value for name, value in report.figures.items() if name not in ("settings", "notes")}
    rows = [(name, _shown(value)) for name, value in shown.items() if value is not None]
    details = _section("Figures", _table(("figure", "value"), rows))
    if report.figures["notes"]:
        details += _section("Notes", f"<pre>{escape(chr(10).join(report.figures['notes']))}</pre>")
    said = f"<p>{_verdict(report)} To see the same again:</p>\n<p><code>{escape(command)}</code></p>\n"
    title = f"A run of {report.figures['scenario']}"
    return _write(folder, stem, title, said, pictures, left_out, details)


def write_sweep_page(scenario_name: str, ends: Sequence[CellEnd], cell_count: int, folder: Path) -> Path:
    """The same of a sweep of `cell_count` cells, of which these have ended."""
    figures = [end.figures for end in ends if end.figures is not None]
    pictures, left_out = pictures_of_sweep(figures)
    names = [name for name in _COLUMNS if any(each.get(name) is not None for each in figures)]
    rows = [
        (end.settings.arguments(), *(_shown((end.figures or {}).get(name, "")) for name in names))
        for end in ends[:MAX_ROWS]
    ]
    details = _section("Cells", _table(("settings", *names), rows))
    if len(ends) > MAX_ROWS:
        details += f"<p>{len(ends) - MAX_ROWS:,} more are in their files alone.</p>\n"
    passed = sum(end.is_passed for end in ends)
    said = f"<p>{passed:,} of {len(ends):,} finished runs passed; the sweep has {cell_count:,}.</p>\n"
    return _write(folder, f"sweep-{scenario_name}", f"A sweep of {scenario_name}", said, pictures, left_out, details)


def _write(
    folder: Path,
    stem: str,
    title: str,
    said: str,
    pictures: Sequence[Picture],
    left_out: Sequence[LeftOut],
    details: str,
) -> Path:
    parts = [_HEAD.format(title=escape(title)), said]
    for picture, png in zip(pictures, _drawn(pictures), strict=True):
        write_whole(folder / f"{stem}.{picture.name}.png", png)
        parts.append(_figure(picture, png))
    if left_out:
        items = "".join(f"<li>{escape(each.title)}: {escape(each.why)}.</li>" for each in left_out)
        parts.append(_section("Not drawn", f'<ul class="quiet">{items}</ul>'))
    path = folder / PAGE_NAME
    write_whole(path, "".join([*parts, details, "</body>\n</html>\n"]).encode())
    return path


def _drawn(pictures: Sequence[Picture]) -> list[bytes]:
    """All of them as PNG; nothing is needed for none."""
    if not pictures:
        return []
    from simulations.pictures.drawing import draw  # not before: it needs matplotlib

    return [draw(picture) for picture in pictures]


def _verdict(report: Report) -> str:
    figures = report.figures
    if figures["interrupted"]:
        return "It was interrupted: this is what there was by then."
    if figures["passed"]:
        return "It passed."
    return f"It FAILED: {escape(figures['error'] or 'lookups failed')}."


def _figure(picture: Picture, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f'<h2>{escape(picture.title)}</h2>\n<figure>\n<img alt="{escape(picture.alt)}" src="{source}">\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>\n"
    )


def _section(title: str, html: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{html}\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["".join(f"<th>{escape(each)}</th>" for each in head)]
    lines += ["".join(f"<td>{escape(each)}</td>" for each in row) for row in rows]
    return "<table>\n" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)

"""Links of the project's pages lead to files and to headings that are there. Addresses elsewhere are not asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
LINKS = [
    (page, link)
    for page in PAGES
    for link in dict.fromkeys(LINK.findall(page.read_text(encoding="utf-8")))
    if not link.startswith(("http://", "https://"))
]


def anchors_of(page: Path) -> set[str]:
    """As they are made of headings where such pages are shown: lower case, dashes for blanks, nothing but letters."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pages_have_links():
    assert len(LINKS) > 100
    assert any("#" in link for _, link in LINKS)


@pytest.mark.parametrize(
    ("page", "link"), LINKS, ids=[f"{page.relative_to(ROOT).as_posix()}: {link}" for page, link in LINKS]
)
def test_link_leads_to_a_file_and_to_a_heading_of_it(page: Path, link: str):
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page

    assert target.exists()
    assert not anchor or anchor in anchors_of(target)

"""The sample reports that the tree carries: whole, self-contained, and of no machine but a reader's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.loadgen.report.test_report import Page
from tests.test_architecture import MACHINE

SAMPLES = Path(__file__).parent.parent.parent.parent / "out/sample"
KINDS = ("run", "sweep", "ab")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_page_stands_alone(kind: str) -> None:
    text = (SAMPLES / kind / "report.html").read_text()
    page = Page(text)
    assert (page.open, page.loads, page.handlers) == ([], [], [])
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert page.tags.count("svg") >= 5
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)", text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_samples_links_lead_somewhere(kind: str) -> None:
    links = re.findall(r"\]\((plots/[^)]+)\)", (SAMPLES / kind / "report.md").read_text())
    assert len(links) >= 5
    assert [link for link in links if not (SAMPLES / kind / link).is_file()] == []


def test_samples_are_small_and_name_no_place_of_one_machine() -> None:
    files = {
        path.relative_to(SAMPLES).as_posix(): path.read_bytes()
        for kind in KINDS
        for path in (SAMPLES / kind).rglob("*")
        if path.is_file()
    }
    assert sum(map(len, files.values())) < 1_500_000
    assert [name for name, data in files.items() if MACHINE.search(data.decode(errors="replace"))] == []

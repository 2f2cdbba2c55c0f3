"""The page in a real browser, where one is installed (Debian: chromium)."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from loadgen.report.plots import plots_available
from tests.kit.missing import CHROMIUM, extra, needs
from tests.kit.patience import run_process
from tests.loadgen.report.test_report import HOSTILE, Page, hostile, reports

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1100,1400"),
]


def browse(page: Path, home: Path, *flags: str) -> str:
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={home}", *flags, page.as_uri()]
    dom: str = run_process(command, capture_output=True, text=True, seconds=50, check=True).stdout
    return dom


@needs(plots_available(), "matplotlib", extra("plots"))
@needs(BROWSER, "Chromium", CHROMIUM)
def test_a_browser_shows_the_page_and_runs_nothing_of_what_came_from_outside(tmp_path: Path) -> None:
    reports(tmp_path / "out", *hostile())
    page = tmp_path / "out/report.html"
    seen = Page(browse(page, tmp_path / "home", "--dump-dom"))
    assert seen.tags.count("svg") == 12
    assert not {"script", "img"} & set(seen.tags)
    assert HOSTILE.split("\x1b")[0] in seen.shown
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "home2", f"--screenshot={picture}")
    assert struct.unpack(">2I", picture.read_bytes()[16:24]) == (1100, 1400)
    assert picture.stat().st_size > 40_000, "a page with text and curves, not a blank one"

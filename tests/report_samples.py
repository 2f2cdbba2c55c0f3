"""Owns the sample reports: the commands of loadgen's README through the gateway, and pictures of their pages in a
real Chromium. Must not know what a test checks: a person looks at what it makes.
Called as `python -m tests.report_samples [--out FOLDER] [--pictures FOLDER]`; it takes three minutes."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from tests.kit.chrome import Chrome
from tests.kit.engine import Engine, Script, Turn
from tests.kit.engine_scripts import timed_script
from tests.kit.running import gateway

MODEL = "m1"
PLACES = 8
KEPT = ("report.html", "report.md", "plots")
LOAD = ("--temperature", "0", "--duplicates", "0.5", "--unique")
LOOKS = tuple((width, dark) for width in (420, 1400) for dark in (False, True))


def limited(places: int) -> Script:
    """An engine of so many places, 40 ms to the first token and 15 ms to each further one."""
    free, generate = asyncio.Semaphore(places), timed_script(ttft=0.04, itl=0.015, tokens=48)

    async def script(turn: Turn) -> None:
        async with free:
            await generate(turn)

    return script


async def loadgen(kind: str, out: Path, *words: str) -> None:
    """One command; its report replaces the sample of this kind."""
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "loadgen", kind, *words, *LOAD, "--result-dir", folder, "--label", kind
        )
        code = await process.wait()
        if not keep(Path(folder), out / kind):
            raise SystemExit(f"loadgen {kind} ended with {code} and made no report")


def keep(results: Path, target: Path) -> bool:
    """The report of the one run in a folder, moved; False if there is none."""
    pages = list(results.glob("*/report.html"))
    if not pages:
        return False
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in KEPT:
        shutil.move(pages[0].parent / name, target / name)
    for picture in (target / "plots").glob("*.png"):  # the pages have the SVG ones
        picture.unlink()
    return True


async def make(out: Path) -> None:
    async with Engine(limited(PLACES), models=(MODEL,)) as engine, gateway(engine, redis="auto") as app:
        await loadgen("run", out, "--base-url", app.url)
        await loadgen("sweep", out, "--base-url", app.url)
        await loadgen("ab", out, "--a", engine.url, "--b", app.url, "--max-concurrency", "1")


async def look(pages: list[Path], pictures: Path) -> None:
    """Each page narrow and wide, light and dark."""
    with tempfile.TemporaryDirectory() as home:
        async with Chrome(Path(home)) as chrome:
            for page in pages:
                for width, dark in LOOKS:
                    await chrome.look(width, 900, dark=dark)
                    await chrome.open(page.as_uri())
                    scheme = "dark" if dark else "light"
                    await chrome.shot(pictures / f"{page.parent.name}-{width}-{scheme}.png")
            print(*chrome.complaints, sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.report_samples", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/sample"))
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="pictures of the pages, PNG")
    parser.add_argument("--only-pictures", action="store_true", help="of the samples as they are")
    args = parser.parse_args()
    if not args.only_pictures:
        asyncio.run(make(args.out))
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
        pages = [(args.out / kind / "report.html").absolute() for kind in ("run", "sweep", "ab")]
        asyncio.run(look(pages, args.pictures))


if __name__ == "__main__":
    main()

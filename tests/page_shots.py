"""Owns the sample pictures of the page: a run of the playground in a real Chromium, light, dark and narrow.
Must not know how a test drives it: a person looks at what it makes.
Called as `python -m tests.page_shots [FOLDER [URL]]`, URL of a gateway that runs; it takes half a minute."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.kit.chrome import Chrome
from tests.kit.engine import Engine
from tests.kit.engine_scripts import paced_script
from tests.kit.running import gateway

TEXT = (
    "A river asks nobody how many cups are dipped into it. The snow that feeds it melts once, high up, and runs "
    "down once; whoever stands at the bank drinks what comes by. One who arrives late walks upstream in a single "
    "stride, has all that has passed, and then waits with the others for what is still to come. Nothing is "
    "carried twice, and nobody goes thirsty because a neighbour drank first."
)
PIECES = [f" {word}" if n else word for n, word in enumerate(TEXT.split())]

CASES: tuple[tuple[str, int, bool, dict[str, object]], ...] = (
    ("light.png", 1180, False, {}),
    ("dark.png", 1180, True, {}),
    ("narrow.png", 420, False, {"readers": 12, "late": 5}),
    ("unshared.png", 1180, False, {"share": "off", "readers": 8, "late": 3}),
)
LATE = "[...document.querySelectorAll('#lanes .times')].every(e => e.textContent)"
MADE = "parseInt(document.querySelector('#tally').textContent.split('Tokens: ')[1])"


async def play(chrome: Chrome, prompt: str, **fields: object) -> None:
    """Fill the form in and ask."""
    await chrome.until(
        "!document.querySelector('#start').disabled && document.querySelector('#model').options.length"
    )
    for field, value in {"prompt": prompt, **fields}.items():
        await chrome.js(f"document.getElementById({field!r}).value = {str(value)!r}")
    await chrome.js("document.getElementById('start').click()")


async def shots(folder: Path, url: str, *, most: int = 73) -> None:
    """All cases against the gateway at `url`, each after a first run that gives the numbers something to show."""
    with tempfile.TemporaryDirectory() as home:
        async with Chrome(Path(home)) as chrome:
            for number, (name, width, dark, fields) in enumerate(CASES):
                await chrome.look(width, 900, dark=dark)
                await chrome.open(url + "/")
                if not number:
                    for prompt in ("Name a river.", "Name three rivers.", "Name four rivers."):
                        await play(chrome, prompt, readers=6, late=2, by=800, most=24)
                    await chrome.until("!document.querySelector('#start').disabled")
                    await chrome.js("document.getElementById('readers').value = 20")
                asked = {"readers": 20, "late": 8, "by": 2000, "most": most} | fields
                await play(chrome, f"How many can drink from one river? ({number + 1})", **asked)
                await chrome.until(LATE)
                await chrome.until(f"{MADE} > {most * 3 // 4} || !document.querySelector('#start').disabled")
                await chrome.shot(folder / name)
            print(*chrome.complaints, sep="\n")


async def fake(folder: Path) -> None:
    """Against two fake engines at an even pace."""
    script = paced_script(PIECES, ttft=0.25, itl=0.04)
    async with (
        Engine(script, models=("smollm2",)) as first,
        Engine(script, models=("smollm2",)) as second,
        gateway(first, second, redis="auto") as app,
    ):
        await shots(folder, app.url)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/sample/page")
    asyncio.run(shots(folder, sys.argv[2], most=48) if len(sys.argv) > 2 else fake(folder))

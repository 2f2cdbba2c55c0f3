"""Owns the sample pictures of the page: a run of the playground in a real Chromium, light, dark and narrow.
Must not know how a test drives it: a person looks at what it makes.
Called as `python -m tests.page_shots [FOLDER]`; it takes some ten seconds."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chrome import Chrome
from tests.engine import Engine
from tests.engine_scripts import paced_script
from tests.running import gateway

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


async def shots(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        script = paced_script(PIECES, ttft=0.25, itl=0.04)
        async with (
            Engine(script, models=("smollm2",)) as first,
            Engine(script, models=("smollm2",)) as second,
            gateway(first, second) as app,
            Chrome(Path(home)) as chrome,
        ):
            for number, (name, width, dark, fields) in enumerate(CASES):
                await chrome.look(width, 900, dark=dark)
                await chrome.open(app.url + "/")
                await chrome.until("document.querySelector('#model').options.length > 0")
                asked = {"prompt": f"How many can drink from one river? ({number + 1})"} | fields
                for field, value in asked.items():
                    await chrome.js(f"document.getElementById({field!r}).value = {str(value)!r}")
                await chrome.js("document.getElementById('start').click()")
                await chrome.until("[...document.querySelectorAll('#lanes .times')].every(e => e.textContent)")
                await chrome.until(
                    "parseInt(document.querySelector('#tally').textContent.split('Tokens: ')[1]) > 56"
                )
                await chrome.shot(folder / name)
                await chrome.until("!document.querySelector('#start').disabled")
                if not number:
                    await chrome.shot(folder / "done.png")
            print(*chrome.complaints, sep="\n")


if __name__ == "__main__":
    asyncio.run(shots(Path(sys.argv[1] if len(sys.argv) > 1 else "out/sample/page")))

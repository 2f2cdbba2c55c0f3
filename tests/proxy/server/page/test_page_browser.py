"""The page in a real browser, where one is installed (Debian: chromium), against the running gateway."""

from __future__ import annotations

import json
from pathlib import Path

from proxy.config.keys_file import hash_of
from tests.kit.chrome import BROWSER, Chrome
from tests.kit.engine import Engine
from tests.kit.engine_scripts import paced_script
from tests.kit.missing import CHROMIUM, needs
from tests.kit.running import gateway, until

HOSTILE = [
    "<script>",
    "alert(1)</script>",
    "</textarea>",
    "</style><img src=x onerror=alert(1)>",
    "\u2028",
    "\x00",
    "🏞",
    "&lt;",
]
PIECES = [*(f"w{n} " for n in range(20)), *HOSTILE, *(f" v{n}" for n in range(12))]
KEY = "sk-" + "k" * 40
FILL = """for (const [id, value] of Object.entries({})) document.getElementById(id).value = value;
document.getElementById('start').click()"""
OVER = "!document.getElementById('start').disabled && document.querySelectorAll('#lanes li').length"
LANES = """[...document.querySelectorAll('#lanes li')].map(li => ({
  badge: li.querySelector('.badge').textContent, text: li.querySelector('div').textContent,
  times: li.querySelector('.times').textContent}))"""


def fill(**fields: object) -> str:
    return FILL.replace("{}", json.dumps(fields))


@needs(BROWSER, "Chromium", CHROMIUM)
async def test_twenty_readers_are_seen_on_one_generation_and_nothing_of_it_is_markup(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[[keys]]\nname = "one"\nsha256 = "{hash_of(KEY).hex()}"\nrps = 0.001\nburst = 43\nrole = "operator"\n'
    )
    file.chmod(0o600)
    async with (
        Engine(paced_script(PIECES, ttft=0.05, itl=0.02)) as engine,
        gateway(engine, api_keys_file=str(file)) as app,
        Chrome(tmp_path / "home") as chrome,
    ):
        await chrome.look(1180, 900)
        await chrome.open(app.url + "/")
        await chrome.until("!document.getElementById('keyform').hidden")
        assert chrome.complaints.pop().count("status of 401") == 1, "the browser's own line of what was refused"
        await chrome.js(
            f"document.getElementById('key').value = '{KEY}'; document.querySelector('#keyform button').click()"
        )
        await chrome.until("document.querySelector('#model').options.length === 1")

        await chrome.js(fill(prompt="hello", readers=20, late=8, by=600))
        await chrome.until(OVER)
        lanes = await chrome.js(LANES)
        assert engine.generations == 1
        assert [lane["badge"] for lane in lanes] == ["miss", *["attached"] * 19]
        assert {lane["text"] for lane in lanes} == {"".join(PIECES)}
        assert all(lane["times"].startswith("TTFT ") for lane in lanes)
        tally = await chrome.js("document.getElementById('tally').textContent")
        assert tally.startswith("1 generation, 20 readers. Tokens: 40 generated, 800 delivered")
        assert await chrome.js("document.querySelectorAll('#lanes script, #lanes img, #lanes style').length") == 0

        await chrome.js(fill(prompt="other", readers=20, late=0, share="off"))
        await chrome.until(OVER + " && document.querySelector('#tally').textContent.startsWith('20')")
        assert engine.generations == 21
        await chrome.js(fill(prompt="more", readers=5, late=0, share="auto"))
        await chrome.until(OVER + " === 5")
        badges = [lane["badge"] for lane in await chrome.js(LANES)]
        assert sorted(badges) == ["429", "429", "attached", "attached", "miss"], "43 requests were to be had"
        await chrome.until("document.getElementById('shared').textContent.endsWith('%')")

        await engine.drop_connections()
        assert await chrome.js("document.documentElement.scrollWidth <= innerWidth")
        await chrome.look(420, 900, dark=True)
        assert await chrome.js("document.documentElement.scrollWidth <= innerWidth")
        picture = tmp_path / "page.png"
        await chrome.shot(picture)
        assert picture.stat().st_size > 40_000
        assert chrome.complaints == []


@needs(BROWSER, "Chromium", CHROMIUM)
async def test_readers_that_share_nothing_and_are_stopped_count_as_what_they_are(tmp_path: Path) -> None:
    async with (
        Engine() as engine,
        gateway(engine, max_inflight=1, redis="unix:///none") as app,
        Chrome(tmp_path / "home") as chrome,
    ):
        await chrome.look(1180, 900)
        await chrome.open(app.url + "/")
        await chrome.until("document.getElementById('redis').textContent === 'not reachable'")
        words = await chrome.js("document.getElementById('redis2').textContent")
        assert words == "look-ups: no connection (No such file or directory). Requests are served without it."
        await chrome.until("document.querySelector('#model').options.length === 1")
        await chrome.js(fill(prompt="hello", readers=20, late=1, by=60_000, share="off"))
        turn = await engine.next_request()
        await turn.send("a")
        await chrome.until("[...document.querySelectorAll('#lanes .badge')].some(e => e.textContent === 'bypass')")
        await until(lambda: app.group.subscribers == 19)
        await chrome.until(
            "document.querySelector('#tally').textContent.startsWith('19 generations, 20 readers.')"
        )
        await chrome.js("document.getElementById('stop').click()")
        await chrome.until(OVER)
        badges = [lane["badge"] for lane in await chrome.js(LANES)]
        assert sorted(badges) == ["bypass", *["stopped"] * 19]
        tally = await chrome.js("document.getElementById('tally').textContent")
        assert tally == "19 generations, 20 readers, 20 stopped. Tokens: 1 generated, 1 delivered."
        await turn.cancelled()
        await until(lambda: len(app.group) == 0)
        assert chrome.complaints == []

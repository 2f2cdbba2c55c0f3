"""Pages of other origins in a real Chromium: a listed one streams from the gateway, others read nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.chrome import BROWSER, Chrome
from tests.kit.client import call
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.engine_turn import Turn
from tests.kit.missing import CHROMIUM, needs
from tests.kit.running import HELLO, HELLO_STREAM, gateway
from tests.proxy.server.page.test_page import KEY, keys
from tests.system.test_origins_browser import elsewhere

SCRIPT = """
const gw = GATEWAY, key = KEY, told = {};
const headers = {'content-type': 'application/json', 'x-stainless-lang': 'js', 'x-gateway-share': 'auto'};
const keyed = {...headers, authorization: 'Bearer ' + key};
const attempt = async (name, path, init) => {
  try {
    const answer = await fetch(gw + path, init), reader = answer.body.getReader(), pieces = [];
    for (;;) { const {done, value} = await reader.read(); if (done) break; pieces.push(value); await 0 }
    const text = new TextDecoder().decode(Uint8Array.from(pieces.flatMap(piece => [...piece])));
    told[name] = {status: answer.status, text, pieces: pieces.length, read: Object.fromEntries(answer.headers)};
  } catch (e) { told[name] = e.name }
};
const ask = (body, headers) => ({method: 'POST', body: JSON.stringify(body), headers});
(async () => {
  const chat = '/v1/chat/completions';
  await attempt('stream', chat, ask(STREAM, keyed));
  await attempt('sampled', chat, ask({...STREAM, temperature: 0.7}, keyed));
  await attempt('body', chat, ask(BODY, keyed));
  await attempt('keyless', chat, ask(BODY, headers));
  await attempt('wrong', chat, ask({}, keyed));
  await attempt('nowhere', '/v1x', {headers: keyed});
  await attempt('put', chat, {...ask(BODY, keyed), method: 'PUT'});
  await attempt('models', '/v1/models', {headers: keyed});
  await attempt('passed', '/tokenize', ask({model: 'm1', prompt: 'x'}, keyed));
  await attempt('cookies', chat, {...ask(BODY, keyed), credentials: 'include'});
  for (const path of ['/metrics', '/-/state', '/']) await attempt(path, path, {headers: keyed});
  document.title = JSON.stringify(told);
})();
"""
READABLE = {
    "stream": 200, "sampled": 200, "body": 200, "keyless": 401, "wrong": 400, "nowhere": 404, "put": 405,
    "models": 200, "passed": 200,
}  # fmt: skip
CLOSED = {"cookies", "/metrics", "/-/state", "/"}


@needs(BROWSER, "Chromium", CHROMIUM)
@pytest.mark.parametrize("listed", ["exact", "any", "other"])
async def test_a_page_of_another_origin_reads_what_the_setting_allows(listed: str, tmp_path: Path) -> None:
    chat = echo_script()

    async def script(turn: Turn) -> None:
        await (turn.respond(200, {"count": 1}) if turn.path == "/tokenize" else chat(turn))

    async with (
        Engine(script) as engine,
        Chrome(tmp_path / "home") as chrome,
        elsewhere("<!doctype html><title>page</title>") as port,
    ):
        page = f"http://127.0.0.1{port}".rstrip("/")
        origins = {"exact": page, "any": "*", "other": "http://127.0.0.1:1"}[listed]
        async with gateway(engine, cors_origins=(origins,), api_keys_file=keys(tmp_path)) as app:
            texts: dict[str, Any] = {"GATEWAY": app.url, "KEY": KEY, "STREAM": HELLO_STREAM, "BODY": HELLO}
            asked = SCRIPT
            for name, value in texts.items():
                asked = asked.replace(name, json.dumps(value))
            await chrome.open(page)
            await chrome.js(asked)
            await chrome.until("document.title.startsWith('{')")
            told = json.loads(await chrome.js("document.title"))
            assert (await call(app.url, "GET", "/health")).status == 200
        if listed == "other":
            assert set(told.values()) == {"TypeError"}, told
            assert engine.requests == []
            return
    assert {name: isinstance(told[name], dict) and told[name]["status"] for name in READABLE} == READABLE
    assert {told[name] for name in CLOSED} == {"TypeError"}
    for name in ("stream", "sampled"):
        assert told[name]["text"].endswith("data: [DONE]\n\n")
        assert {"x-request-id", "x-gateway-cache"} <= told[name]["read"].keys()
    assert told["keyless"]["read"]["www-authenticate"] == "Bearer"
    assert told["put"]["read"]["allow"] == "POST"


WATCH = """
window.seen = '';
fetch(GATEWAY + '/v1/chat/completions', {
  method: 'POST', body: JSON.stringify(STREAM), headers: {'content-type': 'application/json'},
}).then(async answer => {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) { const {done, value} = await reader.read(); if (done) break; window.seen += value }
  window.ended = true;
});
undefined
"""


@needs(BROWSER, "Chromium", CHROMIUM)
async def test_tokens_reach_the_page_as_they_come(engine: Engine, tmp_path: Path) -> None:
    async with Chrome(tmp_path / "home") as chrome, elsewhere("<!doctype html><title>page</title>") as port:
        page = f"http://localhost{port}".rstrip("/")
        async with gateway(engine, cors_origins=(page,)) as app:
            await chrome.open(page)
            script = WATCH.replace("GATEWAY", json.dumps(app.url)).replace("STREAM", json.dumps(HELLO_STREAM))
            await chrome.js(script)
            turn = await engine.next_request()
            for token in ("one", "two"):
                await turn.send(token)
                await chrome.until(f"window.seen.includes('{token}')")
            await turn.finish()
            await chrome.until("window.ended && window.seen.endsWith('data: [DONE]\\n\\n')")

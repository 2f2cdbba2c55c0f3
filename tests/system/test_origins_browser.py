"""A page of another origin in a real Chromium, where one is installed, against a gateway without keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.kit.chrome import BROWSER, Chrome
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.missing import CHROMIUM, needs
from tests.kit.running import HELLO, gateway, lines

PATHS = ("/v1/chat/completions", "/v1/responses", "/-/readers", "/tokenize")

# Each is (name, what the page does, whether that always ends). Else it is given up after 1.5 seconds.
ATTACKS = """
const body = BODY, gw = GATEWAY, told = {};
const soon = p => Promise.race([p, new Promise(done => setTimeout(() => done('silent'), 1500))]);
const attempt = async (name, act, patient) => {
  try { told[name] = String(await (patient ? act() : soon(act()))) } catch (e) { told[name] = 'error: ' + e.name }
};
const read = answer => answer.text().then(text => answer.type + ':' + text);
const send = (path, init) => fetch(gw + path, {method: 'POST', body, ...init}).then(read);
const tag = (kind, set) => new Promise(done => {
  const e = document.createElement(kind);
  e.onload = () => done('loaded'); e.onerror = () => done('failed');
  Object.assign(e, set); document.body.append(e);
});
(async () => {
  for (const path of PATHS) {
    await attempt('text ' + path, () => send(path, {headers: {'content-type': 'text/plain'}}));
    await attempt('json ' + path, () => send(path, {headers: {'content-type': 'application/json'}}));
    await attempt('no-cors ' + path, () => send(path, {mode: 'no-cors'}));
    await attempt('no-cors blob ' + path, () => send(path, {mode: 'no-cors', body: new Blob([body])}));
    await attempt('blob ' + path, () => send(path, {body: new Blob([body])}));
    await attempt('fields ' + path, () => send(path, {mode: 'no-cors', body: new URLSearchParams({x: body})}));
    await attempt('multipart ' + path, () => {
      const fields = new FormData();
      fields.append('x', body);
      return send(path, {body: fields});
    });
    await attempt('beacon ' + path, async () => 'sent ' + navigator.sendBeacon(gw + path, new Blob([body])));
    await attempt('keepalive ' + path, () => send(path, {mode: 'no-cors', keepalive: true}));
    await attempt('form ' + path, () => new Promise(done => {
      const frame = document.createElement('iframe'); frame.name = 'f' + Math.random();
      frame.onload = () => done('loaded'); document.body.append(frame);
      const form = document.createElement('form');
      Object.assign(form, {action: gw + path, method: 'post', enctype: 'text/plain', target: frame.name});
      const field = document.createElement('input'); field.name = body.slice(0, -1) + ',"x":"'; field.value = '"}';
      form.append(field); document.body.append(form); form.submit();
    }));
    await attempt('img ' + path, () => tag('img', {src: gw + path}));
    await attempt('script ' + path, () => tag('script', {src: gw + path}));
  }
  for (const path of ['/-/state', '/v1/responses/x', '/metrics', '/v1/models', '/version', '/']) {
    await attempt('get ' + path, () => fetch(gw + path).then(r => r.text()));
    await attempt('get no-cors ' + path, () => fetch(gw + path, {mode: 'no-cors'}).then(read));
    await attempt('img ' + path, () => tag('img', {src: gw + path}));
    await attempt('frame ' + path, () => new Promise(done => {
      const frame = document.createElement('iframe'); frame.src = gw + path;
      frame.onload = () => {
        try { done('read: ' + frame.contentDocument.body.innerText) } catch (e) { done('closed') }
      };
      document.body.append(frame);
    }));
    await attempt('events ' + path, () => new Promise((done, fail) => {
      const source = new EventSource(gw + path);
      source.onmessage = e => done('read: ' + e.data);
      source.onerror = () => { source.close(); done('refused') };
    }));
    await attempt('websocket ' + path, () => new Promise(done => {
      const socket = new WebSocket(gw.replace('http', 'ws') + path);
      socket.onopen = () => done('opened'); socket.onerror = () => done('refused');
    }), true);
  }
  document.title = JSON.stringify(told);
})();
"""


@asynccontextmanager
async def elsewhere(html: str) -> AsyncIterator[str]:
    """Another origin: a server of one page on loopback. Its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {len(html.encode())}"
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"{head}\r\nconnection: close\r\n\r\n{html}".encode())
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a browser opens connections that it may not use
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f":{server.sockets[0].getsockname()[1]}/"


@needs(BROWSER, "Chromium", CHROMIUM)
@pytest.mark.parametrize("own", ["127.0.0.1", "localhost"], ids=["same site", "another site"])
async def test_a_page_of_another_origin_draws_nothing_from_an_engine_and_reads_nothing(
    own: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with (
        Engine(echo_script()) as engine,
        gateway(engine, log_to=log) as app,
        Chrome(tmp_path / "home") as chrome,
    ):
        script = ATTACKS.replace("BODY", json.dumps(json.dumps(HELLO))).replace("GATEWAY", json.dumps(app.url))
        script = script.replace("PATHS", json.dumps(PATHS))
        async with elsewhere(f"<!doctype html><body><script>{script}</script>") as port:
            await chrome.open(f"http://{own}{port}")
            await chrome.until("document.title.startsWith('{')")
            told = json.loads(await chrome.js("document.title"))
            # A sandboxed page has no origin at all.
            frame = f"<iframe sandbox='allow-scripts' src='http://{own}{port}?{quote('x')}'></iframe>"
            async with elsewhere(f"<!doctype html><body>{frame}") as around:
                await chrome.open(f"http://{own}{around}")
        assert engine.requests == [], "the engine sees nothing"
        assert len(app.group) == 0
    assert len(told) == 12 * len(PATHS) + 6 * 6
    read = {
        name: text for name, text in told.items() if "read:" in text or '"flights"' in text or "gateway_" in text
    }
    assert read == {}
    assert {text for name, text in told.items() if name.startswith("websocket")} == {"refused"}
    statuses = {line["status"] for line in lines(tmp_path / "log") if line["msg"] == "request"}
    assert 403 in statuses
    assert 200 not in {
        line["status"] for line in lines(log) if line["msg"] == "request" and line["endpoint"] not in ("page",)
    }

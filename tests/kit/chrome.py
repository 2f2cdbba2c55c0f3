"""Owns a real Chromium, driven over its DevTools protocol: pages opened, scripts asked, pictures taken.
Must not know the gateway or what a test checks.
Called by tests of pages; `BROWSER` is None where none is installed (Debian: chromium)."""

from __future__ import annotations

import asyncio
import json
import shutil
from base64 import b64decode
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from tests.kit.patience import patience

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 55.0  # seconds for an answer of the browser's
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0"),
    *("--disable-dev-shm-usage", "--disable-extensions"),
]


class Chrome:
    """One browser with one page. `complaints`: what its console said that is no mere talk."""

    def __init__(self, home: Path) -> None:
        self.complaints: list[str] = []
        self._home = home
        self._ids = count(1)
        self._session = ""

    async def __aenter__(self) -> Chrome:
        self._process = await asyncio.create_subprocess_exec(
            str(BROWSER), *FLAGS, f"--user-data-dir={self._home}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        async with patience(PATIENCE):
            async for line in self._process.stderr:
                if line.startswith(b"DevTools listening on "):
                    break
            else:
                raise AssertionError("the browser does not start")
        self._client = aiohttp.ClientSession()
        self._socket = await self._client.ws_connect(line.decode().split()[-1], max_msg_size=0)
        target = (await self.ask("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = ""
            await self.ask("Browser.close")
            await self._socket.close()
        finally:
            await self._client.close()
            if kind is not None:
                self._process.kill()
            await self._process.wait()

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command, and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": self._session} if self._session else {}))
        async with patience(PATIENCE):
            while True:
                said = json.loads(await self._socket.receive_str())
                if said.get("id") == number:
                    assert "error" not in said, said
                    return dict(said["result"])
                self._heard(said)

    def _heard(self, said: dict[str, Any]) -> None:
        params = said.get("params", {})
        if said["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif said["method"] == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            # Other tests add interfaces to this machine, at which Chromium ends requests: the page asks again.
            if not params["entry"]["text"].endswith(" net::ERR_NETWORK_CHANGED"):
                self.complaints.append(str(params["entry"]))
        elif said["method"] == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error", "assert"):
            self.complaints.append(str(params["args"]))

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """The size of the window, and the colours that its person likes."""
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])

    async def open(self, url: str) -> None:
        await self.ask("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def js(self, expression: str) -> Any:
        """What an expression comes to; a promise is awaited."""
        said = await self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, fact: str) -> None:
        """Wait until an expression holds in the page; looked at with every frame."""
        await self.js(
            f"new Promise(done => {{ const look = () => ({fact}) ? done() : setTimeout(look, 15); look() }})"
        )

    async def shot(self, path: Path, *, whole: bool = True) -> None:
        """A picture of the page, PNG."""
        said = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        _keep(path, b64decode(said["data"]))


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

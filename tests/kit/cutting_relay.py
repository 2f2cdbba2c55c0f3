"""Owns TCP relays that cut an engine's stream after a number of its events, as an engine that is killed does.
Must not know what a test checks.
Called by tests of real engines: `shears.cut_after(3)`, where `async with CuttingRelay(url, shears)`."""

from __future__ import annotations

import asyncio
from types import TracebackType
from urllib.parse import urlsplit

END: bytes = b"\n\n"  # of an event; HTTP heads and chunk sizes end in CRLF


class Shears:
    """Cuts one stream, of whichever relay has it. `cuts` counts those that were cut, `passed` has the pieces of
    answers that the gateway got."""

    def __init__(self) -> None:
        self.cuts = 0
        self.passed: list[bytes] = []
        self._left: int | None = None  # events; None: nothing is cut

    def cut_after(self, events: int) -> None:
        """Cut the connection on which this event passes, counted from now on; once."""
        self._left = events

    def place_in(self, data: bytes) -> int | None:
        """Where this piece is cut, if it is."""
        if self._left is None:
            return None
        at = 0
        while (found := data.find(END, at)) >= 0:
            at = found + len(END)
            self._left -= 1
            if self._left <= 0:
                self._left = None
                self.cuts += 1
                return at
        return None


class CuttingRelay:
    """Passes bytes both ways, until the shears cut."""

    def __init__(self, url: str, shears: Shears) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self._shears = shears
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> CuttingRelay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._open):
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ends = [writer]
        self._open.add(writer)
        try:
            engine_reader, engine_writer = await asyncio.open_connection(*self._target)
            ends.append(engine_writer)
            self._open.add(engine_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, engine_writer))
                both.create_task(self._pass_answer(engine_reader, writer))
        except* (ConnectionError, _Over):
            pass
        finally:
            for end in ends:
                end.transport.abort()
            self._open.difference_update(ends)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        raise _Over

    async def _pass_answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            end = self._shears.place_in(data)
            self._shears.passed.append(data[:end])
            writer.write(data[:end])
            await writer.drain()
            if end is not None:
                writer.close()  # what was written goes out first
                await writer.wait_closed()
                raise _Over
        raise _Over


class _Over(Exception):
    """One side has closed: so does the other."""

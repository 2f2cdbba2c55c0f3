"""The playground's readers: many requests of one page over one connection, as browsers open only six to a host.
Each has a RequestContext and reads a Flight like any other request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.errors import GatewayError
from proxy.flights import Mode, Subscriber
from proxy.server import respond
from proxy.server.context import RequestContext
from proxy.server.gateway import Gateway
from proxy.server.page.event_stream import EventStream
from proxy.wire import LAST_CHUNK, ApiRequest, unchunks

Read = ApiRequest | GatewayError
"""The request of all readers, decoded once, or the error that all of them get."""


class ReaderPipe:
    """One reader's Pipe: frames, out of the chunks that they are in, as events with the reader's number."""

    __slots__ = ("_board", "_call", "_number", "_told")

    def __init__(self, board: Playground, number: int, context: RequestContext) -> None:
        self._board = board
        self._number = number
        self._call = context
        self._told = False

    def write(self, data: bytes | memoryview) -> bool:
        frames = self._board.frames(bytes(data))
        if frames:
            self._board.tell(self._number, *([] if self._told else [self._head()]), b'"frames":' + frames)
            self._told = True
        return not self._board.stream.write_paused

    def _head(self) -> bytes:
        """What a response's headers would say, and which of the generations it reads."""
        reader = self._call.reader
        assert reader is not None
        flight, engine_request = self._board.place_of(reader)
        return msgspec.json.encode({"verdict": reader.verdict, "flight": flight, "ask": engine_request})[1:-1]


class Playground:
    """The events of all readers of one page: one stream, frames put into JSON once for all who get the same."""

    def __init__(self, stream: EventStream, context: RequestContext) -> None:
        self.stream = stream
        self._call = context
        self._began = 0.0
        self._last: tuple[bytes, bytes] = (b"", b"")
        self._flights: dict[int, int] = {}
        self._asks: dict[object, int] = {}
        self._kept: list[object] = []  # flights, so that no two have the same id

    def frames(self, data: bytes) -> bytes:
        """A JSON list of the frames in HTTP chunks of our making; nothing where there is only the end."""
        if data is not self._last[0]:
            found = [frame.decode("utf-8", "replace") for frame in unchunks(data.removesuffix(LAST_CHUNK))]
            self._last = data, msgspec.json.encode(found) if found else b""
        return self._last[1]

    def number_of(self, reader: Subscriber) -> int:
        """Which flight it reads."""
        self._kept.append(reader.flight)
        return self._flights.setdefault(id(reader.flight), len(self._flights))

    def place_of(self, reader: Subscriber) -> tuple[int, int | None]:
        """Which flight it reads, and which request at an engine that is; None where the store answered.
        Twins that were merged left the queue in one request, at one time by the clock."""
        flight, number = reader.flight, self.number_of(reader)
        if flight.stored_at is not None:
            return number, None
        which: object = flight.times.dispatched if reader.verdict == "merged" else id(flight)
        return number, self._asks.setdefault(which, len(self._asks))

    def tell(self, number: int, *members: bytes) -> None:
        """An event of one reader: members of a JSON object, besides its number and the time in ms."""
        ms = (time.monotonic() - self._began) * 1000  # uvloop's own time() knows whole milliseconds only
        self.stream.put(b'{"reader":%d,"ms":%.1f,%b}' % (number, ms, b",".join(members)))

    async def run(self, gateway: Gateway, request: Read, delays: Sequence[float]) -> None:
        """All readers, each from its time to its end. Cancelled, all of them leave."""
        self._began = time.monotonic()
        tasks = [
            asyncio.create_task(self._read(gateway, request, number, delay / 1000))
            for number, delay in enumerate(delays)
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, gateway: Gateway, asked: Read, number: int, delay: float) -> None:
        """One reader, from its delay to its end, as `Gateway.handle` does for a request."""
        if delay:
            await asyncio.sleep(delay)
        page = self._call
        context = RequestContext(
            request=page.request, id=f"{page.id[:120]}-{number}", endpoint="chat", caller=page.caller, status=200
        )
        refusal: GatewayError | None = None
        if gateway.tracing is not None:
            gateway.tracing.begin(context, inside=page)
        try:
            try:
                if isinstance(asked, GatewayError):
                    raise asked
                context.accept(asked)
                reader = await gateway.generation.join(context, asked)
                self.tell(
                    number, b'"behind":%d,"flight":%d' % (reader.flight.content_events, self.number_of(reader))
                )
                await self._follow(context, reader, number)
            except Exception as e:  # noqa: BLE001 - the border of one request: its reader is shown an error
                refusal = gateway.outcomes.error_of(context, e)
                context.begin_response(refusal.status)
                context.refused(refusal)
        except (asyncio.CancelledError, ConnectionError):
            gateway.outcomes.disconnected(context)
            raise
        finally:
            gateway.outcomes.finish(context)
        self.tell(number, b'"end":' + msgspec.json.encode(self._end(context, refusal)))

    async def _follow(self, context: RequestContext, reader: Subscriber, number: int) -> None:
        """Until its answer ends. Raises GatewayError."""
        if not reader.visible:
            await reader.ready()
        if reader.flight.mode is Mode.WHOLE:  # an error of the engine's
            await reader.complete()
            status, _, answer = respond.json_response(reader.flight)
            context.begin_response(status)
            text = (answer if isinstance(answer, bytes) else b"".join(answer)).decode("utf-8", "replace")
            self.tell(number, b'"body":' + msgspec.json.encode(text))
            return
        flight = reader.flight
        if flight.error is not None and not flight.view(usage=reader.usage):
            raise flight.error
        reader.write_to(ReaderPipe(self, number, context), whole_chunks=True)
        await respond.write_until_done(reader, self.stream.wait_writable)

    def _end(self, context: RequestContext, refusal: GatewayError | None) -> dict[str, Any]:
        flight = context.reader.flight if context.reader is not None else None
        usage = flight.usage if flight is not None else None
        error = refusal or (flight.error if flight is not None else None)
        return {
            "status": context.status,
            "verdict": context.verdict,
            "ttft_ms": context.ttft_ms,
            "tokens": usage.completion_tokens if usage is not None else None,
            "error": None if error is None else error.body()["error"],
        }

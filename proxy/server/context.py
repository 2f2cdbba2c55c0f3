"""Owns one client request's facts while it is answered: its id, its body, and what is logged and counted.
Must not know flights' insides, engines or Redis.
Called by the gateway."""

from __future__ import annotations

import asyncio
import io
import math
import os
import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Protocol

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_writer import HttpVersion11
from aiohttp.web_exceptions import HTTPException

from proxy.access import Caller
from proxy.access.ratelimit import Reservation
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.flights import Held, Subscriber
from proxy.server.listener.request import AT_HAND, at_hand
from proxy.telemetry import Log, Metrics, RequestRecord
from proxy.wire import ApiRequest
from proxy.wire.http import require_json, require_plain

MAX_MODEL: Final = 256  # characters of a model's name that are logged
MAX_METHOD: Final = 16  # the same of a method
BODY_COST: Final = 2
"""What a body holds of memory until its request has ended: itself, and the request that is made of it."""
GRANULE: Final = 256 * 1024  # bytes by which the charge of a body of unknown length grows
LEAST_FREE: Final = 4 * 1024
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")


def request_id(given: str | None) -> str:
    """The client's own id where it is a plain token of at most 128 characters, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else os.urandom(16).hex()


class Traced(Protocol):
    """The trace of a request; see `tracing.py`."""

    @property
    def id(self) -> str | None: ...

    def reads(self, call: RequestContext, reader: Subscriber) -> None: ...

    def ended(self, call: RequestContext) -> None: ...


@dataclass(slots=True, eq=False)
class RequestContext:
    """One request at the gateway."""

    request: web.BaseRequest
    id: str
    endpoint: str = "unknown"
    model: str | None = None
    stream: bool = False
    ask: ApiRequest | None = None
    caller: Caller | None = None  # where somebody has to know
    cost: tuple[int, int] | None = None  # tokens of the prompt and of the completion, where they are known
    hold: Reservation | None = None  # what it has of the limits
    reader: Subscriber | None = None
    held: Held | None = None  # what its body holds of the memory budget
    unread: Held | None = None  # what of its answer waits for the client, as far as it is no other's too
    status: int = 0
    error: str | None = None
    allow: str | None = None
    bytes_out: int = 0
    client_left: bool = False
    deadline: float = math.inf  # by the loop's clock, where the client gave one
    client: str | None = None  # its address, where it was refused
    named: bool = True  # its id may be the client's own
    trace: Traced | None = None
    admin: bool = False  # it came by the listener for operators
    forget: Callable[[], None] | None = None  # called once it is over
    ending: GatewayError | None = None  # why it is cut short
    began: float = field(default_factory=time.monotonic)

    def cut(self, error: GatewayError) -> bool:
        """End it: its task is cancelled, and answers with this error. False: it is being ended already."""
        task = self.request.task
        if self.ending is not None or task.done():
            return False
        self.ending = error
        task.cancel()
        return True

    def identified(self, caller: Caller) -> None:
        """It is from this caller."""
        self.caller = caller

    def reserves(self, reserve: Callable[[], Reservation | None]) -> Reservation | None:
        """It has what `reserve` returns of the limits until it is closed. Nothing can fail between the two."""
        self.hold = hold = reserve()
        return hold

    def when_closed(self, forget: Callable[[], None]) -> None:
        """Call this once it is over."""
        self.forget = forget

    def reads(self, reader: Subscriber) -> Subscriber:
        """It has its place at a Flight, of its own making or another's."""
        self.reader = reader
        if self.hold is not None:
            self.hold.joins(reader)
        if self.trace is not None:
            self.trace.reads(self, reader)
        return reader

    def headers(self) -> list[tuple[str, str]]:
        """What every answer says, a refusal too."""
        ours = [("x-request-id", self.id)]
        if self.allow is not None:
            ours.append(("allow", self.allow))
        return ours if self.hold is None else ours + self.hold.headers()

    def close(self) -> None:
        """It is over, however: its place is free, and what it had of memory and of the limits goes back."""
        if self.forget is not None:
            self.forget()
        try:
            if self.held is not None:
                self.held.release()
            if self.unread is not None:
                self.unread.release()
        finally:
            try:
                if self.reader is not None:
                    self.reader.leave()
            finally:
                if self.hold is not None:
                    self.hold.close(answered=0 < self.status < 400)

    def whose(self) -> str:
        """The key's, or the connection's peer's."""
        return self.caller.id if self.caller is not None else self.request.remote or ""

    @property
    def ttft_ms(self) -> float | None:
        """To the first token, as this client saw it."""
        first = self._times()[1]
        return None if first is None else round(first * 1000, 3)

    def _times(self) -> tuple[float, float | None, float]:
        """Seconds in the queue, to the first token (as this client saw it), and in all."""
        total = time.monotonic() - self.began
        if self.reader is None:
            return 0.0, None, total
        times = self.reader.flight.times
        queued = max(0.0, (times.dispatched or times.ended or self.began) - self.began)
        first = None if times.first is None else max(0.0, times.first - self.began)
        return min(queued, total), first, total

    def _tokens(self) -> tuple[int | None, int | None, str | None]:
        """Prompt tokens, completion tokens, and where the count is from."""
        if self.reader is None:
            return None, None, None
        flight = self.reader.flight
        if flight.usage is not None:
            source = "estimated" if flight.estimated else "usage"
            return flight.usage.prompt_tokens, flight.usage.completion_tokens, source
        if flight.content_events:
            return None, flight.content_events, "events"
        return None, None, None

    @property
    def verdict(self) -> str:
        return self.reader.verdict if self.reader is not None else "bypass"

    def failure(self) -> str | None:
        """The error's code: of a refusal, or of a stream that broke after its head had gone out."""
        if self.error is None and self.reader is not None and self.reader.flight.error is not None:
            return self.reader.flight.error.code.code
        return self.error

    def tell(
        self, metrics: Metrics, log: Log | None, *, show_prompt: bool, who: Callable[[], Hashable] | None = None
    ) -> None:
        """One count, and one line where `log` is given, of the request, after all is said. `who`: whose it is."""
        queue, ttft, total = self._times()
        prompt, completion, source = self._tokens()
        status = 499 if self.client_left else self.status
        model = self.model
        if model is not None and len(model) > MAX_MODEL:
            model = model[:MAX_MODEL] + "…"
        reader, verdict = self.reader, "bypass"
        items, sent_as = None, self.id
        if reader is not None:
            verdict = reader.verdict
            items, spec = reader.flight.items, reader.flight.spec
            if reader.flight.times.dispatched is not None:
                sent_as = reader.flight.carried_as or spec.request_id
        # By place: by name the two take a microsecond and a half more.
        metrics.request(self.endpoint, status, verdict, self.model, queue, ttft, total, prompt, completion, source)
        if self.trace is not None:
            self.trace.ended(self)
        if log is None:
            return
        record = RequestRecord(
            self.id,
            self.endpoint,
            self.request.method[:MAX_METHOD],
            status,
            verdict,
            self.stream,
            round(queue * 1000, 3),
            round(total * 1000, 3),
            self.bytes_out or (reader.sent if reader is not None else 0),
            self.client_left,
            model,
            None if ttft is None else round(ttft * 1000, 3),
            prompt,
            completion,
            source,
            reader.flight.backend if reader is not None else None,
            self.failure(),
            self.caller.name or None if self.caller is not None else None,
            self.ask.prompt.decode("utf-8", "replace") if show_prompt and self.ask is not None else None,
            reader.flight.attempts if reader is not None else 1,
            items.total if items is not None else None,
            items.cached if items is not None else None,
            self.trace.id if self.trace is not None else None,
            self.client,
            self.hold.limit if self.hold is not None else None,
            sent_as if sent_as != self.id else None,
        )
        if who is None:
            log.request(record)
        else:
            log.request(record, who)


def free_body(budget: int, max_connections: int) -> int:
    """Bytes of a body that are not charged to the memory budget: of all connections together a quarter of it."""
    return min(AT_HAND, max(LEAST_FREE, budget // 4 // max_connections))


def body_at_hand(
    request: web.BaseRequest, settings: Settings, *, json: bool, most: int = AT_HAND, limit: int = 0
) -> bytes | None:
    """The body, where it came with its head, as small ones do: nothing to wait for. None: `read_body` reads it.
    `limit`: its own, in the place of `max_body_bytes`. Raises GatewayError 413 or 415."""
    headers = request.headers
    if json:
        if headers.get("content-type") != "application/json":
            require_json(headers)
        if "content-encoding" in headers:
            require_plain(headers)
    length = request.content_length or 0
    largest = limit or settings.max_body_bytes
    if length > largest:
        raise _too_large(largest)
    if length > most:
        return None
    body = at_hand(request.content, most)
    if body is None:
        return None
    if len(body) > largest:
        raise _too_large(largest)
    return body


async def read_body(
    request: web.BaseRequest, settings: Settings, held: Held | None = None, limit: int = 0
) -> bytes:
    """The whole body, within its bounds of bytes and seconds, charged to `held` before it is read. Raises
    GatewayError 400, 408, 413 or 503."""
    largest = limit or settings.max_body_bytes
    if held is not None:
        held.need(BODY_COST * (request.content_length or GRANULE))
    expects = request.headers.get("expect", "").lower() == "100-continue" and request.version >= HttpVersion11
    if expects and request.transport is not None:  # RFC 9110 10.1.1: HTTP/1.0 has no 100
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = io.BytesIO()  # its value is taken without a copy, and its growth is the system's: no pieces to join
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout or None):
            while piece := await request.content.readany():
                size += len(piece)
                if size > largest:
                    raise _too_large(largest)
                if held is not None and BODY_COST * size > held.size:
                    held.need(BODY_COST * (size + GRANULE))
                body.write(piece)
    except TimeoutError:
        raise GatewayError(
            Code.BODY_TIMEOUT, f"The body did not arrive within {settings.body_timeout:g} s."
        ) from None
    except (HttpProcessingError, HTTPException, ClientPayloadError, web.RequestPayloadError, ValueError) as e:
        raise GatewayError(Code.INVALID_VALUE, f"The body cannot be read: {type(e).__name__}.") from None
    return body.getvalue()


def _too_large(largest: int) -> GatewayError:
    return GatewayError(Code.BODY_TOO_LARGE, f"The body is over the limit of {largest} bytes.")

"""Owns one client request's facts while it is answered: its id, its body, and what is logged and counted.
Must not know flights' insides, engines or Redis.
Called by the gateway."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from dataclasses import dataclass, field
from typing import Final, Protocol

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_exceptions import HTTPException

from proxy.caller import Caller
from proxy.config import Settings
from proxy.door import at_hand
from proxy.errors import Code, GatewayError
from proxy.flight import Subscriber
from proxy.limiter import Hold
from proxy.log import Log, RequestRecord
from proxy.metrics import Metrics
from proxy.wire.openai import Ask

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}")


def request_id(given: str | None) -> str:
    """The client's own id where it is a plain token of at most 128 characters, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else os.urandom(16).hex()


class Traced(Protocol):
    """The trace of a request; see `tracing.py`."""

    @property
    def id(self) -> str | None: ...

    def reads(self, call: Call, reader: Subscriber) -> None: ...

    def ended(self, call: Call) -> None: ...


@dataclass(slots=True)
class Call:
    """One request at the gateway."""

    request: web.BaseRequest
    id: str
    endpoint: str = "unknown"
    model: str | None = None
    stream: bool = False
    ask: Ask | None = None
    caller: Caller | None = None  # where somebody has to know
    cost: tuple[int, int] | None = None  # tokens of the prompt and of the completion, where they are known
    hold: Hold | None = None  # what it has of the limits
    reader: Subscriber | None = None
    status: int = 0
    error: str | None = None
    allow: str | None = None
    bytes_out: int = 0
    client_left: bool = False
    deadline: float = math.inf  # by the loop's clock, where the client gave one
    client: str | None = None  # its address, where it was refused
    trace: Traced | None = None
    began: float = field(default_factory=time.monotonic)

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
        """It is over, however: its place is free, and what it had of the limits goes back."""
        if self.reader is not None:
            self.reader.leave()
        if self.hold is not None:
            self.hold.close(answered=0 < self.status < 400)

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
            return flight.usage.prompt_tokens, flight.usage.completion_tokens, "usage"
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

    def tell(self, metrics: Metrics, log: Log | None, *, show_prompt: bool) -> None:
        """One count, and one line where `log` is given, of the request, after all is said."""
        queue, ttft, total = self._times()
        prompt, completion, source = self._tokens()
        status = 499 if self.client_left else self.status
        reader, verdict = self.reader, self.verdict
        items = reader.flight.items if reader is not None else None
        # By place: by name the two take a microsecond and a half more.
        metrics.request(self.endpoint, status, verdict, self.model, queue, ttft, total, prompt, completion, source)
        if self.trace is not None:
            self.trace.ended(self)
        if log is None:
            return
        log.request(
            RequestRecord(
                self.id,
                self.endpoint,
                self.request.method,
                status,
                verdict,
                self.stream,
                round(queue * 1000, 3),
                round(total * 1000, 3),
                self.bytes_out or (reader.sent if reader is not None else 0),
                self.client_left,
                self.model,
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
            )
        )


def body_at_hand(request: web.BaseRequest, settings: Settings, *, json: bool) -> bytes | None:
    """The body, where it came with its head, as small ones do: nothing to wait for. None: `read_body` waits for
    it. Raises GatewayError 413 or 415."""
    headers = request.headers
    if json:
        kind = headers.get("content-type")
        if kind is not None and kind != "application/json" and not _is_json(kind):
            raise GatewayError(
                Code.UNSUPPORTED_MEDIA_TYPE, f"Send application/json, not {kind.partition(';')[0][:64]!r}."
            )
        coding = headers.get("content-encoding")
        if coding is not None and coding.lower() != "identity":
            raise GatewayError(Code.UNSUPPORTED_MEDIA_TYPE, "Send the body without a Content-Encoding.")
    if (request.content_length or 0) > settings.max_body_bytes:
        raise _too_large(settings)
    body = at_hand(request.content)
    if body is None:
        return None
    if len(body) > settings.max_body_bytes:
        raise _too_large(settings)
    return body


async def body_of(request: web.BaseRequest, settings: Settings, *, json: bool) -> bytes:
    """The whole body, at hand or not: one call more than the two that it is made of."""
    body = body_at_hand(request, settings, json=json)
    return await read_body(request, settings) if body is None else body


async def read_body(request: web.BaseRequest, settings: Settings) -> bytes:
    """The whole body, within its bounds of bytes and seconds. Raises GatewayError 400, 408 or 413."""
    if request.headers.get("expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout or None):
            while piece := await request.content.readany():
                size += len(piece)
                if size > settings.max_body_bytes:
                    raise _too_large(settings)
                pieces.append(piece)
    except TimeoutError:
        raise GatewayError(
            Code.BODY_TIMEOUT, f"The body did not arrive within {settings.body_timeout:g} s."
        ) from None
    except (HttpProcessingError, HTTPException, ClientPayloadError, web.RequestPayloadError, ValueError) as e:
        raise GatewayError(Code.INVALID_VALUE, f"The body cannot be read: {type(e).__name__}.") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(settings: Settings) -> GatewayError:
    return GatewayError(Code.BODY_TOO_LARGE, f"The body is over the limit of {settings.max_body_bytes} bytes.")


def _is_json(kind: str) -> bool:
    media = kind.partition(";")[0].strip().lower()
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))

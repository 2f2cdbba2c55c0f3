"""One request's facts: its id, its body within its bounds, and what is logged and counted of it."""

from __future__ import annotations

import asyncio
import inspect
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import ClientPayloadError
from aiohttp.http_writer import HttpVersion11
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from proxy.config.settings import Settings
from proxy.errors import Code, GatewayError
from proxy.flights.group import FlightGroup
from proxy.flights.spec import FlightSpec, Mode
from proxy.server.body import body_if_buffered, read_body
from proxy.server.context import MAX_MODEL, RequestContext, request_id
from proxy.server.listener.request import Request
from proxy.telemetry.log import Log, RequestRecord
from proxy.telemetry.metrics import Metrics
from proxy.wire.frames import Usage
from proxy.wire.openai import decode
from tests.kit.clock import virtual


class Limits:
    max_body_bytes = 10
    body_timeout = 2.0


NONE = "(none)"


class Body:
    """A request as far as its body goes: pieces that arrive, an error, or nothing more (None)."""

    plain = False

    def __init__(
        self, *pieces: bytes | Exception | None, length: int | None = None, complete: bool = False, **headers: str
    ) -> None:
        given = {name.replace("_", "-"): value for name, value in headers.items() if value != NONE}
        self.headers = CIMultiDict({"content-type": "application/json"} | given)
        if headers.get("content_type") == NONE:
            del self.headers["content-type"]
        self.content_length = length
        self.can_read_body = bool(pieces)
        self.content = self
        self.transport = self
        self.method = "POST"
        self.version = HttpVersion11
        self.written = b""
        self.complete = complete  # it came with its head
        self._pieces = list(pieces)

    def write(self, data: bytes) -> None:
        self.written += data

    def is_eof(self) -> bool:
        return not self._pieces or self.complete

    def exception(self) -> BaseException | None:
        return None

    @property
    def _buffer(self) -> list[bytes]:
        return [piece for piece in self._pieces if isinstance(piece, bytes)]

    _buffer_offset = 0
    body = None

    @property
    def _size(self) -> int:
        return sum(map(len, self._buffer))

    def read_nowait(self) -> bytes:
        return b"".join(self._buffer)

    async def readany(self) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if piece is None:
            await asyncio.Event().wait()
        if isinstance(piece, Exception):
            raise piece
        return piece or b""


async def read(body: Body, *, json: bool = True) -> bytes:
    request, limits = cast(Request, body), cast(Settings, Limits())
    at_hand = body_if_buffered(request, limits, json=json)
    return at_hand if at_hand is not None else await read_body(request, limits)


@pytest.mark.parametrize("given_id", ["a", "A-1._:/+=@", "x" * 128])
def test_a_plain_id_of_the_client_is_kept(given_id: str) -> None:
    assert request_id(given_id) == given_id


@pytest.mark.parametrize("given_id", [None, "", "-a", "x" * 129, "a b", "a\n", "a\r\nb", 'a"', "é", "٣"])
def test_any_other_id_is_replaced_by_a_new_one(given_id: str | None) -> None:
    made = request_id(given_id)
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert request_id(given_id) != made


@given(st.text())
def test_an_id_is_always_safe_in_a_header_and_a_log(given_id: str) -> None:
    made = request_id(given_id)
    assert made.isascii()
    assert made.isprintable()
    assert 0 < len(made) <= 128


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (Body(), b""),
        (Body(b"abc"), b"abc"),
        (Body(b"abc", complete=True), b"abc"),
        (Body(b"abc", b"de", complete=True), b"abcde"),
        (Body(b"abc", b"de"), b"abcde"),
        (Body(b"0123456789", length=10), b"0123456789"),
        (Body(b"a", content_type="application/json; charset=utf-8"), b"a"),
        (Body(b"a", content_type="Application/Vnd.x+JSON"), b"a"),
        (Body(b"a", content_encoding="identity"), b"a"),
    ],
)
@virtual
async def test_a_body_within_its_bounds_is_read_whole(body: Body, whole: bytes) -> None:
    assert await read(body) == whole


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (Body(b"a", length=11), Code.BODY_TOO_LARGE),
        (Body(b"012345", b"678901"), Code.BODY_TOO_LARGE),
        (Body(b"01234567890", complete=True), Code.BODY_TOO_LARGE),
        (Body(b"a", None), Code.BODY_TIMEOUT),
        (Body(b"a", ClientPayloadError("x")), Code.INVALID_VALUE),
        (Body(b"a", content_type="text/plain"), Code.UNSUPPORTED_MEDIA_TYPE),
        (Body(b"a", content_type="application/jsonx"), Code.UNSUPPORTED_MEDIA_TYPE),
        (Body(b"a", content_type=""), Code.UNSUPPORTED_MEDIA_TYPE),
        (Body(b"a", content_type=NONE), Code.UNSUPPORTED_MEDIA_TYPE),
        (Body(b"a", content_type="application/json; charset=utf-16"), Code.UNSUPPORTED_MEDIA_TYPE),
        (Body(b"a", content_encoding="gzip"), Code.UNSUPPORTED_MEDIA_TYPE),
    ],
)
def test_a_body_out_of_bounds_is_refused(body: Body, code: Code) -> None:
    @virtual
    async def refused() -> None:
        with pytest.raises(GatewayError) as caught:
            await read(body)
        assert caught.value.code is code

    refused()


@virtual
async def test_what_is_passed_through_may_be_of_any_type() -> None:
    assert await read(Body(b"a", content_type="multipart/form-data", content_encoding="gzip"), json=False) == b"a"


@virtual
async def test_a_client_that_waits_is_told_to_go_on_unless_it_would_be_refused() -> None:
    body = Body(b"a", expect="100-Continue")
    assert await read(body) == b"a"
    assert body.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    refused = Body(b"a", length=11, expect="100-continue")
    with pytest.raises(GatewayError):
        await read(refused)
    assert refused.written == b""


class Told:
    """Keeps what the metrics and the log are told."""

    def __init__(self) -> None:
        self.counted: list[dict[str, Any]] = []
        self.logged: list[RequestRecord] = []

    def of(self, call: RequestContext, *, show_prompt: bool = False) -> tuple[dict[str, Any], RequestRecord]:
        call.record_outcome(cast(Metrics, self._counting()), cast(Log, self._logging()), show_prompt=show_prompt)
        return self.counted[-1], self.logged[-1]

    def _counting(self) -> SimpleNamespace:
        names = list(inspect.signature(Metrics.request).parameters)[1:]  # it is told by place
        return SimpleNamespace(request=lambda *facts: self.counted.append(dict(zip(names, facts, strict=True))))

    def _logging(self) -> Any:
        return SimpleNamespace(request=self.logged.append)


def call(**facts: Any) -> RequestContext:
    return RequestContext(cast(Request, Body()), "id", endpoint="chat", status=200, **facts)


def test_a_request_without_a_flight_is_recorded_as_a_bypass() -> None:
    _, record = Told().of(call(error="invalid_json"), show_prompt=True)
    assert (record.verdict, record.error, record.ttft_ms, record.backend) == ("bypass", "invalid_json", None, None)
    assert record.queue_ms == 0.0
    assert (record.token_source, record.prompt, record.method) == (None, None, "POST")


def test_a_long_name_of_a_model_is_cut_in_the_log() -> None:
    assert Told().of(call(model="m" * MAX_MODEL))[1].model_id == "m" * MAX_MODEL
    assert Told().of(call(model="m" * 4_000_000))[1].model_id == "m" * MAX_MODEL + "…"


def test_a_client_that_left_is_counted_as_such_whatever_was_sent() -> None:
    counted, record = Told().of(call(client_left=True))
    assert (counted["status"], record.status) == (499, 499)


def test_the_prompt_is_recorded_only_where_it_was_asked_for() -> None:
    asked = call(api_request=decode("chat", b'{"messages": [1]}'))
    assert Told().of(asked, show_prompt=True)[1].prompt == "[1]"
    assert Told().of(asked)[1].prompt is None


def test_a_probe_is_counted_and_not_logged() -> None:
    told = Told()
    call().record_outcome(cast(Metrics, told._counting()), None, show_prompt=False)
    assert (len(told.counted), told.logged) == (1, [])


@virtual
async def test_tokens_are_counted_from_usage_or_else_from_events() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r"))
    one = call(reader=group.attach(flight, usage=True, whole=False, attached=True))
    assert Told().of(one)[0]["token_source"] is None
    flight.content_events = 3
    facts, _ = Told().of(one)
    assert (facts["prompt_tokens"], facts["completion_tokens"], facts["token_source"]) == (None, 3, "events")
    flight.usage = Usage(5, 4, 9)
    facts, record = Told().of(one)
    assert (facts["prompt_tokens"], facts["completion_tokens"], facts["token_source"]) == (5, 4, "usage")
    assert (facts["verdict"], record.completion_tokens) == ("attached", 4)
    group.remove(flight)


@virtual
async def test_times_are_this_clients_own_and_never_negative() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r"))
    late = call(reader=group.attach(flight, usage=True, whole=False, attached=True))
    flight.times.dispatched, flight.times.first = late.began - 5, late.began - 4
    facts, _ = Told().of(late)
    assert (facts["queue_s"], facts["ttft_s"]) == (0.0, 0.0)
    flight.fail(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert late.failure() == "upstream_truncated"
    group.remove(flight)

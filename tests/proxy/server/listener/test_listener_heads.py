"""A request's head as a whole is bounded, however it comes, and who is refused reads why."""

from __future__ import annotations

import pytest

from tests.kit.client import Connection, request_bytes
from tests.proxy.server.listener.test_listener import error_of, serving

MANY = b"".join(b"x-%d: %b\r\n" % (n, b"y" * 500) for n in range(8))  # each line is short enough


@pytest.mark.parametrize("step", [None, 100, 1500], ids=["at once", "in small pieces", "in pieces"])
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["whole", "without an end"])
async def test_a_head_too_large_as_a_whole_is_refused_however_it_comes(step: int | None, end: bytes) -> None:
    async with serving(max_header=1024, max_head=3000) as (url, _), await Connection.open(url) as client:
        await client.send(request_bytes("GET", "/one"))
        assert (await client.read()).body == b"/one"
        await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + MANY + end, step=step)
        answer = await client.read()
        assert error_of(answer) == (431, "headers_too_large")
        assert "exceed 3000 bytes" in answer.json()["error"]["message"]
        assert await client.at_eof()


@pytest.mark.parametrize("step", [None, 100, 1500])
async def test_bodies_are_no_part_of_a_head_nor_are_requests_of_each_other(step: int | None) -> None:
    async with serving(max_header=1024, max_head=3000) as (url, _), await Connection.open(url) as client:
        body = b'{"n": "' + b"1" * 10_000 + b'"}'
        await client.send(b"".join(request_bytes("POST", f"/{n}", body) for n in range(3)), step=step)
        assert [(await client.read()).body for _ in range(3)] == [b"/0", b"/1", b"/2"]
        half = b"".join(b"x-%d: %b\r\n" % (n, b"y" * 500) for n in range(4))
        head = b"GET /h HTTP/1.1\r\nHost: localhost\r\n" + half + b"\r\n"
        await client.send(head * 5, step=step)
        assert [(await client.read()).body for _ in range(5)] == [b"/h"] * 5


async def test_a_client_that_still_sends_reads_why_it_was_refused() -> None:
    async with serving(max_header=1024, max_head=3000) as (url, _), await Connection.open(url) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + MANY * 200)  # closing at once would reset it
        assert error_of(await client.read()) == (431, "headers_too_large")


BEFORE = {"first": b"", "after a line": b"\r\n", "after a request": request_bytes("POST", "/one", b"{}")}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("step", [None, 1, 7], ids=["at once", "byte by byte", "in pieces"])
@pytest.mark.parametrize(
    "line", [b"POST /two RTSP/1.0", b"GET /two RTSP/1.1", b"SOURCE /two ICE/1.0", b"GET /two RTSP/2.0"]
)
async def test_a_request_of_another_protocol_is_refused_and_its_connection_closed(
    line: bytes, step: int | None, before: bytes
) -> None:
    request = line + b"\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    async with serving() as (url, _), await Connection.open(url) as client:
        await client.send(before + request + request_bytes("GET", "/three"), step=step)
        if before.startswith(b"POST"):
            assert (await client.read()).body == b"/one"
        answer = await client.read()
        assert error_of(answer) == (400, "invalid_value")
        assert answer.json()["error"]["message"] == "The request line must end with HTTP/1.1."
        assert await client.at_eof()


async def test_a_target_may_name_another_protocol() -> None:
    async with serving() as (url, _), await Connection.open(url) as client:
        for step in (None, 1):
            for path in ("/RTSP/1.0", "/a/ICE/1.0", "/RTSP"):
                await client.send(request_bytes("POST", path, b"{}"), step=step)
                assert (await client.read()).body == path.encode()

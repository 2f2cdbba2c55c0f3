"""Owns the comparison of three readings of a request: aiohttp's parser, the gateway's own, and httptools'.
Must not know sockets: seeded mutations of a corpus in, counts and disagreements out.
`python -m tests.differential --count 1000000` exits 1 where two readings of what the gateway accepts differ."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from urllib.parse import parse_qsl, unquote_to_bytes

import httptools
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from proxy.errors import GatewayError
from proxy.server.handlers.relay import end_to_end_headers
from proxy.server.listener.head import read_head
from proxy.upstream.http.pool import Pool
from proxy.wire.http.target import Target

BODY = b'{"model":"m1"}'
CORPUS = tuple(
    b"\r\n".join((line + b" HTTP/1.1", b"Host: " + host, *fields, b"", body))
    for line, host, fields, body in (
        (b"GET /v1/models", b"localhost", (), b""),
        (b"GET /v1/models/a%2Fb?x=1&y=%41", b"127.0.0.1:8080", (b"Accept: */*",), b""),
        (b"GET http://api.example.com:80/v1/models?x", b"api.example.com", (), b""),
        (b"GET //v1/./a/../models/", b"[::1]:8080", (b"Connection: keep-alive",), b""),
        (b"OPTIONS *", b"localhost", (), b""),
        (b"HEAD /health", b"localhost", (b"Connection: close",), b""),
        (b"DELETE /v1/responses/resp_1", b"localhost", (b"X-A: b", b"X-A: c"), b""),
        (b"POST /v1/chat/completions", b"localhost", (b"Content-Length: 14",), BODY),
        (b"POST /v1/echo?a=b", b"localhost", (b"Content-Length: 14", b"Content-Type: application/json"), BODY),
        (b"POST /v1/echo", b"localhost", (b"Transfer-Encoding: chunked",), b"e\r\n" + BODY + b"\r\n0\r\n\r\n"),
        (b"POST /v1/echo", b"h", (b"Transfer-Encoding: chunked",), b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"),
        (b"POST /v1/echo", b"h", (b"Expect: 100-continue", b"Content-Length: 5"), b"hello"),
        (b"POST /v1/echo", b"h", (b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5"), b"hello"),
        (b"PUT /v1/x/%C3%B6%20y", b"h", (b"Content-Length: 0",), b""),
    )
)
"""Requests that are all accepted."""

OCTETS = tuple(bytes([code]) for code in (*range(0x21), 0x7F, 0x80, 0xA0, 0xC0, 0xE9, 0xFF))
PIECES = (
    *b"# ? % / // /. /./ /../ ; : @ & = \\ , ~ + * [ ] ( ) ! $ ' \" < > | ^ ` { } _ - . .. ... 0 9 a G".split(),
    *b"%2F %2f %2e %2E%2e %25 %252e %23 %3F %5C %00 %0d%0a %C3%B6 %FF %zz %4 %41 #? ?# #frag /x%2f..".split(),
    *b"http:// https:// //evil user@ :80 :99999 [::1] 127.0.0.1 a,b h2c chunked identity gzip".split(),
    b"\r\n", b"\r", b"\n", b"\r\n ", b"\r\n\t", b" \r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b", ",
    b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b" HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
)  # fmt: skip
FIELDS = (
    b"Host: h", b"Host: other", b"Host:", b"Host : h", b"host: h", b"Host: a, b", b"Host: u@h", b"Host: h/p",
    b"Host: a:b:c", b"Content-Length: 5", b"Content-Length: 14", b"Content-Length: 05", b"Content-Length: +5",
    b"Content-Length: 5, 5", b"Content-Length: -1", b"Content-Length:", b"Content-Length : 5",
    b"Content-Length: 5 5", b"Content-Length:\t5", b"Content-Length: 5\t", b"content_length: 9",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding:", b"Transfer-Encoding: ", b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding:\tchunked", b"Transfer-Encoding: chunked ",
    b"Transfer-Encoding: ,chunked", b"Transfer-Encoding: chunked;a=b", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding:\r\n chunked", b"TE: trailers", b"Connection: close", b"Connection: keep-alive, Upgrade",
    b"Upgrade: h2c", b"Upgrade: websocket", b"Connection: Content-Length", b"X: a\r\n b", b" X: a", b"X", b": x",
    b"X y: z", b"X: \xe9", b"X: \x00", b"X: a\rb", b"Expect: 100-continue", b"Expect: x", b"Trailer: Host",
)  # fmt: skip
METHODS = b"GET POST PUT HEAD DELETE OPTIONS TRACE CONNECT PATCH QUERY get M-SEARCH".split()


def mutated(rng: random.Random) -> bytes:
    """One of the corpus with one to four changes, most of them in its head."""
    data = rng.choice(CORPUS)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        head = data.find(b"\r\n\r\n") % (len(data) + 1)
        line = data.find(b"\r\n") % (len(data) + 1)
        kind = rng.random()
        if kind < 0.45:  # into the request line, or anywhere
            at = rng.randrange((line if rng.random() < 0.6 else len(data)) + 1)
            data = (
                data[:at]
                + rng.choice(OCTETS if rng.random() < 0.15 else PIECES)
                + data[at + rng.choice((0, 0, 0, 1)) :]
            )
        elif kind < 0.75:  # a field more, or in place of another
            lines = data[:head].split(b"\r\n")
            at = rng.randrange(1, len(lines) + 1)
            lines[at : at + rng.choice((0, 1))] = [rng.choice(FIELDS)]
            data = b"\r\n".join(lines) + data[head:]
        elif kind < 0.82:
            data = rng.choice(METHODS) + data[data.find(b" ") % (len(data) + 1) :]
        elif kind < 0.88:  # white space around a colon
            at = data.find(b":", rng.randrange(len(data) + 1)) % (len(data) + 1)
            data = data[:at] + rng.choice((b" :", b": ", b":\t", b":", b"\t:", b":\x0b")) + data[at + 1 :]
        elif kind < 0.94:
            at = rng.randrange(len(data) + 1)
            data = data[:at] + data[at + rng.randrange(1, 4) :]
        else:
            at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
            data = data[:at] + data[at:end].swapcase() + data[end:]
    return data


class Httptools:
    """The first request, as an engine's server (uvicorn) reads it."""

    def __init__(self, data: bytes) -> None:
        self.url = self.body = self.host = self.method = b""
        self.lengths: list[bytes] = []
        self.headed = self.whole = self.offered = False
        self.error: Exception | None = None
        self.parser = httptools.HttpRequestParser(self)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # It takes the rest for the other protocol's; test_listener.py has what follows.
            self.offered = True
        except httptools.HttpParserError as e:
            self.error = e

    def on_url(self, url: bytes) -> None:
        if not self.headed:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.headed:
            low = name.lower()
            if low == b"host":
                self.host = value.strip(b" \t")
            elif low in (b"content-length", b"transfer-encoding"):
                self.lengths.append(value)

    def on_headers_complete(self) -> None:
        if not self.headed:
            self.headed = True
            self.method = self.parser.get_method()
            self.keep = self.parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if not self.whole:
            self.body += data

    def on_message_complete(self) -> None:
        self.whole = True

    def path_and_query(self) -> tuple[str, bytes]:
        """As uvicorn has them."""
        url = httptools.parse_url(self.url)
        return unquote_to_bytes(url.path).decode(), url.query or b""


@dataclass
class Differential:
    """Counts of what was tried, and every disagreement."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[bytes, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pool = Pool("http://engine:8000", connect_timeout=1.0, loop=self.loop)

    def close(self) -> None:
        self.pool.close()
        self.loop.close()

    def run(self, count: int, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            self.compare(mutated(rng))

    def compare(self, data: bytes) -> None:
        self.counts["tried"] += 1
        protocol = BaseProtocol(self.loop)
        parser = HttpRequestParser(
            protocol, self.loop, 2**16, max_line_size=16384, max_field_size=16384, max_headers=100,
            auto_decompress=False, max_msg_queue_size=32,
        )  # fmt: skip
        try:
            messages, _, _ = parser.feed_data(data)
        except HttpProcessingError:
            self.counts["refused by the parser"] += 1
            return
        if not messages:
            self.counts["no whole head"] += 1
            return
        message, payload = messages[0]
        try:
            target, host = read_head(message)
        except GatewayError:
            self.counts["refused by the gateway"] += 1
            return
        self.counts["accepted"] += 1
        for words in self.differences(message, payload, target, host, Httptools(data)):
            self.wrong.append((data, words))

    def differences(
        self, message: RawRequestMessage, payload: StreamReader, target: Target, host: str, other: Httptools
    ) -> list[str]:
        """Between the three, and between what is meant and what an engine reads of what is sent."""
        whole = payload.is_eof()
        body = b"" if payload is EMPTY_PAYLOAD else b"".join(payload._buffer)
        raw = message.path.encode("utf-8", "surrogateescape")
        found = []

        def same(what: str, ours: object, theirs: object) -> None:
            if ours != theirs:
                found.append(f"{what}: {ours!r}, {theirs!r}")

        same("a head", True, other.headed)
        same("method", message.method.encode(), other.method)
        same("target", raw, other.url)
        if not other.offered:
            same("whole", whole, other.whole)
            same("body", body, other.body)
        same("framings", True, len(other.lengths) < 2)
        same("kept", not message.should_close, other.keep)
        given = target.authority.encode() if target.authority is not None else other.host
        same("host", host, hostname(given))
        if message.method == "CONNECT" or target.path == "*":
            return found
        path, query = split(raw)
        same("path", target.path, resolved(path))
        same("path of aiohttp", unquote_to_bytes(path).decode(), message.url.path)
        same("query of aiohttp", query, message.url.raw_query_string.encode())
        if whole:
            headers = end_to_end_headers(message.raw_headers)
            engine = Httptools(self.pool.request(message.method, target.text, headers, body) + b"GET")
            sent, asked = engine.path_and_query()
            same("method sent", other.method, engine.method)
            same("path sent", target.path, sent)
            same("a fragment sent", False, b"#" in engine.url)
            same("query sent", parse_qsl(query.decode(), True), parse_qsl(asked.decode(), True))
            same("body sent", body, engine.body)
            same("host sent", b"engine:8000", engine.host)
            same("sent whole", True, engine.whole and engine.error is None)
        return found


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target, whichever its form."""
    if raw[:1] != b"/":
        raw = raw.partition(b"://")[2]
        slash = min(at % (len(raw) + 1) for at in (raw.find(b"/"), raw.find(b"?")))
        raw = raw[slash:] if raw[slash : slash + 1] == b"/" else b"/" + raw[slash:]
    path, _, query = raw.partition(b"?")
    return path, query


def resolved(path: bytes) -> str:
    """RFC 3986 5.2.4 on the decoded path, written another way than the gateway's."""
    kept: list[str] = []
    for segment in unquote_to_bytes(path).decode().split("/"):
        if segment == ".." and kept:
            kept.pop()
        elif segment not in ("", ".", ".."):
            kept.append(segment)
    return "/" + "/".join(kept)


def hostname(given: bytes) -> str:
    text = given.decode("latin-1").lower()
    name, _, port = text.rpartition(":")
    bare = name if name and "]" not in port else text
    return str(IPv6Address(bare[1:-1])) if bare[:1] == "[" else bare.removesuffix(".")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    differential = Differential()
    differential.run(args.count, args.seed)
    differential.close()
    for data, words in differential.wrong[:20]:
        print(f"{words}\n    {data!r}")
    print(dict(differential.counts), f"disagreements: {len(differential.wrong)}, {time.monotonic() - began:.0f} s")
    return 1 if differential.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

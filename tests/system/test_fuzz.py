"""A fuzz of request lines, headers and bodies against the running process: whatever is sent, each answer is valid
HTTP, none is a 500, the process lives and serves the next client. `-s` prints the counts."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import httptools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.e2e

CHAT = json.dumps({"model": "m1", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}).encode()
SENTINEL = b"\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

TOKEN = st.text("abcXYZ-_09", min_size=1, max_size=12)
JUNK = st.text(st.characters(max_codepoint=255), max_size=40)
METHOD = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "DELETE", "PUT", "TRACE", "CONNECT"]) | TOKEN | JUNK
SEGMENTS = (
    "v1 models chat completions embeddings .. . %2e%2e %2f %00 %0d%0a \\ metrics responses tokenize health embed"
)
SEGMENT = st.sampled_from(["", "?a=b", "#x", "%", "%zz", "\xff", ";x", "..;", *SEGMENTS.split()]) | JUNK
PATHS = "/v1/chat/completions /v1/models /health /embed /v1/responses * http://h/health"
PATH = (
    st.sampled_from(PATHS.split()) | st.lists(SEGMENT, max_size=6).map(lambda parts: "/" + "/".join(parts)) | JUNK
)
KNOWN = (
    "Host Content-Length Transfer-Encoding Connection Expect Upgrade Content-Type Authorization X-Request-Id "
    "Cache-Control X-Gateway-Share Content-Encoding TE Trailer X-Forwarded-For Accept traceparent X-Session-Id"
)
FINE = (
    "X-Request-Id Cache-Control Authorization X-Forwarded-For Accept traceparent X-Session-Id TE Connection Expect"
)
NAME = st.sampled_from(KNOWN.split()) | TOKEN | JUNK
VALUES = (
    "g 0 5 100 -1 chunked identity close keep-alive 100-continue application/json text/plain no-cache all off gzip"
)
VALUE = (
    st.sampled_from(
        [*VALUES.split(), "5, 5", "gzip, chunked", "Bearer ka", "a\r\nX-Injected: 1", "\r\n ", "h2c", "\0"]
    )
    | JUNK
)
PLAIN = st.sampled_from([*VALUES.split(), "Bearer ka", "x-a, close"]) | TOKEN
BODY = st.sampled_from([b"", CHAT, b"{}", b"[", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n"]) | st.binary(max_size=60)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Half of them nearly right, so that some come far; the rest anything."""
    body = draw(BODY)
    lines = draw(st.lists(st.tuples(NAME, VALUE), max_size=6))
    if draw(st.booleans()):
        target = draw(
            st.sampled_from(["POST /v1/chat/completions", "POST /tokenize", "GET /v1/models", "GET /metrics"])
        )
        line = f"{target} HTTP/1.1"
        body = draw(st.just(CHAT) | BODY)
        extra = draw(st.lists(st.tuples(st.sampled_from(FINE.split()) | TOKEN, PLAIN), max_size=4))
        lines = [
            ("Host", "localhost"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            *extra,
        ]
    else:
        version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", ""]))
        line = f"{draw(METHOD)} {draw(PATH)} {version}"
        if draw(st.booleans()):
            lines = [("Host", "localhost"), *lines]
    head = "\r\n".join([line, *(f"{name}: {value}" for name, value in lines), "", ""])
    return head.encode("latin-1") + body


class Answers:
    """Reads answers, strictly: by llhttp, none of ours and none of aiohttp's."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.names: set[bytes] = set()
        self.whole = 0
        self._parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.add(name.lower())

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())
        self.bodies.append(b"")

    def on_body(self, data: bytes) -> None:
        self.bodies[-1] += data

    def on_message_complete(self) -> None:
        self.whole += 1

    def feed(self, data: bytes) -> None:
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self._parser.feed_data(data)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A gateway of its own process before a fake engine of its own process."""
    with contextlib.ExitStack() as stack:

        def start(*command: str, says: str) -> re.Match[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", *command],
                    stdout=subprocess.PIPE if "tests.kit.engine" in command else subprocess.DEVNULL,
                    stderr=None if "tests.kit.engine" in command else subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.terminate)
            stream = process.stdout or process.stderr
            assert stream is not None
            found = re.match(says, stream.readline())
            assert found is not None
            return found

        engine = start(
            "tests.kit.engine", "--ttft-ms", "0", "--itl-ms", "0", "--tokens", "2", says=r"fake engine on (\S+),"
        )
        gateway = start(
            *("proxy", "--port", "0", "--redis", "off", "--backend", engine[1], "--body-timeout", "0.3"),
            says=r"gateway at http://127.0.0.1:(\d+)",
        )
        yield int(gateway[1])


COUNTS: Counter[str] = Counter()
EXAMPLES = max(500, settings().max_examples)


def talk(port: int, data: bytes) -> Answers:
    """Send all of it and take what comes: until the end, or until nothing more does after an answer."""
    answers = Answers()
    with socket.create_connection(("127.0.0.1", port), timeout=50.0) as sock, contextlib.suppress(ConnectionError):
        try:
            sock.sendall(data)
            while got := sock.recv(65536):
                answers.feed(got)
                sock.settimeout(0.1 if answers.statuses and answers.statuses[-1] >= 200 else 50.0)
        except TimeoutError:
            assert answers.statuses, f"no answer and no end within 50 s to {data!r}"
    return answers


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=requests())
def test_whatever_is_sent_each_answer_is_valid_http_and_none_is_a_500(port: int, data: bytes) -> None:
    if data.startswith(b"HEAD "):
        COUNTS["HEAD, left out"] += 1  # the parser would take the next answer for its body
        return
    answers = talk(port, data + SENTINEL)
    COUNTS["requests"] += 1
    for status, body in zip(answers.statuses, answers.bodies, strict=True):
        COUNTS[str(status)] += 1
        assert status != 500, body
    assert b"x-injected" not in answers.names
    if not answers.statuses:
        COUNTS["no answer"] += 1
    check = talk(port, SENTINEL[4:])
    assert check.statuses == [200]


def test_the_fuzz_saw_answers_of_many_kinds() -> None:
    print("fuzz:", dict(sorted(COUNTS.items())))
    assert COUNTS["requests"] > 10
    assert COUNTS["200"] > 0
    assert COUNTS["400"] > 0

"""Public lists of HTTP/1.1 cases, Http11Probe's 215 and h1spec's 33, against the running process: one table."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.kit.http11 import Case, cases, play

pytestmark = pytest.mark.e2e
CASES = cases()
FLAGS = ("--port", "0", "--redis", "off", "--allowed-hosts", "*")


class Engine(ThreadingHTTPServer):
    request_queue_size = 512


class Echo(BaseHTTPRequestHandler):
    """An engine that sends a POST's body back."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("content-length") or 0)))

    def do_GET(self) -> None:
        self._answer(b'{"object":"list","data":[{"id":"m1","object":"model"}]}')

    do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, str]]:
    """Of all cases, each on its own connection, all at once."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(("127.0.0.1", 0), Echo))
        thread = threading.Thread(target=engine.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(engine.shutdown)
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "proxy", *FLAGS, "--backend", f"http://127.0.0.1:{engine.server_port}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.terminate)
        assert process.stderr is not None
        found = re.match(r"gateway at http://127.0.0.1:(\d+)", process.stderr.readline())
        assert found is not None
        port = int(found[1])

        async def all_at_once() -> list[str]:
            return await asyncio.gather(*(play(case, "localhost", port) for case in CASES))

        yield dict(zip((case.id for case in CASES), asyncio.run(all_at_once()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_case_of_the_public_lists_is_answered_as_the_table_says(case: Case, answers: dict[str, str]) -> None:
    assert answers[case.id] == case.answer


def test_the_table_is_whole_and_every_other_answer_has_its_reason() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    assert sum(case.source == "Http11Probe" for case in CASES) == 215
    assert sum(case.source == "h1spec" for case in CASES) == 33

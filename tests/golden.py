"""Owns the reading of `tests/golden`: recorded exchanges with vLLM 0.32, and 0.33 in `0.33/`, taken apart.
Must not know the proxy: its codecs are what the recordings put on trial.
Called by tests that compare with what the engine said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.kit.engine_wire import GOLDEN as FOLDER
from tests.kit.engine_wire import golden_request, golden_response

__all__ = ("FOLDER", "Recording", "load", "names")

_END = re.compile(rb"(?<=\n\n)")


@dataclass(frozen=True)
class Recording:
    """One request and its answer. Header names are in lower case; bodies are out of their chunks."""

    method: str
    path: str
    request_headers: dict[str, str]
    request_body: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: tuple[bytes, ...]  # the answer's HTTP chunks as they were cut; none where it was not chunked

    def frames(self) -> list[bytes]:
        """The answer's events, each with its blank line; joined they are the body."""
        return [frame for frame in _END.split(self.body) if frame]

    def request(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.request_body)
        return found

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


def names(prefix: str = "", suffix: str = "") -> list[str]:
    """The recordings whose names begin and end so, in order."""
    found = (path.name.removesuffix(".response.http") for path in FOLDER.glob("*.response.http"))
    return sorted(name for name in found if name.startswith(prefix) and name.endswith(suffix))


def load(name: str) -> Recording:
    asked, request_headers, request = _message(golden_request(name))
    answered, headers, answer = _message(golden_response(name))
    method, path, _ = asked.split(" ")
    chunks: tuple[bytes, ...] = ()
    if headers.get("transfer-encoding") == "chunked":
        chunks = tuple(_chunks(answer))
        answer = b"".join(chunks)
    elif "content-length" in headers:
        assert len(answer) == int(headers["content-length"])
    return Recording(method, path, request_headers, request, int(answered.split(" ")[1]), headers, answer, chunks)


def _message(data: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    return first, {n.lower(): value.strip() for n, _, value in (line.partition(":") for line in lines)}, body


def _chunks(data: bytes) -> Iterator[bytes]:
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        assert data[size : size + 2] == b"\r\n"
        if not size:
            assert data == b"\r\n"
            return
        yield data[:size]
        data = data[size + 2 :]

"""The start of a process that parses: its parent, its bound of memory, and its socket."""

from __future__ import annotations

import gc
import resource
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from proxy.server.offload import child


@pytest.mark.parametrize(
    ("available", "bound"),
    [(1 << 20, child.LEAST), (8 << 30, 2 << 30), (1 << 40, child.MOST), (4 * child.MOST - 4, child.MOST - 1)],
)
def test_it_may_take_a_quarter_of_the_memory_within_bounds(
    monkeypatch: pytest.MonkeyPatch, available: int, bound: int
) -> None:
    told: list[Any] = []

    def opened(*, fileno: int) -> AbstractContextManager[str]:
        told.append(("socket", fileno))
        return nullcontext("socket")

    monkeypatch.setattr(sys, "argv", ["child", "123"])
    monkeypatch.setattr(child, "tie", lambda parent: told.append(("parent", parent)))
    monkeypatch.setattr(child, "available", lambda: available)
    monkeypatch.setattr(resource, "setrlimit", lambda *given: told.append(given))
    monkeypatch.setattr(Path, "write_text", lambda *given: told.append(given[1]))
    monkeypatch.setattr(gc, "disable", lambda: told.append("gc"))
    monkeypatch.setattr(socket, "socket", opened)
    monkeypatch.setattr(child, "serve", lambda sock, reader: told.append((sock, type(reader))))
    child.main()
    assert told == [
        ("parent", 123),
        (resource.RLIMIT_AS, (bound, bound)),
        "1000",
        "gc",
        ("socket", 0),
        ("socket", child.Reader),
    ]
    told.clear()

    def fails(*given: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", fails)
    child.main()
    assert told[-1] == ("socket", child.Reader)

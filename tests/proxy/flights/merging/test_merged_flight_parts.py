"""One frame with choices of several members: one that has left or breaks keeps nothing from those after it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.flights.flight import Flight
from tests.kit.clock import virtual
from tests.proxy.flights.merging.test_merger_riders import Ridden, flight


def both(*contents: str) -> bytes:
    choices = [
        {"index": n, "delta": {"content": content}, "finish_reason": None} for n, content in enumerate(contents)
    ]
    return b"data: %b\n\n" % json.dumps({"id": "i", "choices": choices}).encode()


@pytest.mark.parametrize("how", ["left", "breaks"])
@virtual
async def test_the_next_member_has_its_part(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    ridden, members = Ridden(), [flight(stream=True), flight(stream=True)]
    merged = ridden.merged(*members)
    if how == "left":
        ridden.merger.leave(members[0])
    else:
        real = Flight.add

        def add(self: Flight, frame: bytes, **more: Any) -> None:
            if self is members[0]:
                raise ZeroDivisionError
            real(self, frame, **more)

        monkeypatch.setattr(Flight, "add", add)
        asyncio.get_running_loop().set_exception_handler(lambda *given: None)
    merged.add(both("a", "b"))
    merged.flush()
    assert b'"b"' in b"".join(members[1].log)
    assert (members[1].content_events, merged.members[0]) == (1, None)

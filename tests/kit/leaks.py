"""Owns the two checks that follow every test: no task left running, every FlightGroup empty.
Must not know which test ran. Plain functions, so that `test_kit.py` can show that they catch something.
Called by `tests/conftest.py` and `tests/kit/clock.py`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE_TURNS = 20  # turns of the loop in which what was just cancelled or closed may still end


async def settle() -> None:
    """Let the loop turn a few times: no waiting, only what is already due."""
    for _ in range(GRACE_TURNS):
        await asyncio.sleep(0)


async def check_tasks() -> None:
    """Raises if a task other than the current one is still running in this loop."""
    await settle()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"{len(left)} tasks left running: {left}"


@contextmanager
def recorded_groups() -> Iterator[list[Any]]:
    """The FlightGroups made inside, each kept in a list by a wrapped `__init__`: no search of the heap."""
    group = getattr(sys.modules.get("proxy.flights.group"), "FlightGroup", None)
    groups: list[Any] = []
    if group is None:
        yield groups
        return
    original = group.__init__

    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        groups.append(self)

    group.__init__ = recording
    try:
        yield groups
    finally:
        group.__init__ = original


def check_groups(groups: list[Any]) -> None:
    full = [group for group in groups if len(group)]
    assert not full, f"flights left in {len(full)} groups: {full}"

"""The line of the log at the end: a warning where requests were cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.server.drain import Drain
from tests.kit.clock import virtual


@pytest.mark.parametrize(("busy", "level"), [(0, "info"), (2, "warning")])
@virtual
async def test_requests_that_were_cut_are_a_warning(busy: int, level: str) -> None:
    told: list[Any] = []

    async def does(*given: Any) -> None:
        told.append(given)

    drain = Drain(
        cast(Any, SimpleNamespace(busy=busy, finish=does)),
        cast(Any, SimpleNamespace(sites=[], cleanup=does)),
        cast(Any, SimpleNamespace(enter=lambda stage: None)),
        does,
        delay=0.0,
        timeout=0.0,
        log=cast(Any, SimpleNamespace(event=lambda *given, **more: told.append((*given, more)))),
    )
    await drain(None, None, None)
    assert told[-1] == (level, "drained", {"cut": busy})

"""What was found in another process is checked here: as a body that passes through, or as a request."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from proxy.wire.http.media_type import Media
from tests.kit.clock import virtual
from tests.proxy.server.offload.test_large_jobs import Desk, call, pools

__all__ = ["pools"]  # a fixture


@virtual
async def test_the_access_policy_is_told_which_of_both_it_is(tmp_path: Path) -> None:
    told: list[Any] = []
    policy = SimpleNamespace(check_found=lambda context, found, raw=False: told.append(raw))
    desk = Desk(tmp_path)
    desk.large._access_policy = cast(Any, policy)
    await desk.large.raw(call(), Media("json"), b"{}")
    await desk.large.read(call(), "chat", b"{}")
    assert told == [True, False]
    desk.lines()

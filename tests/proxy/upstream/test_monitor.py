"""What looks at something time and again goes on, whatever one look raises."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.config.settings import Settings
from proxy.upstream import monitor as watches
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.monitor import FIRST_LOOK_SECONDS, each, first_look, for_ever, watch
from tests.kit.clock import run_virtual, virtual


@virtual
async def test_what_raises_is_reported_and_begins_anew() -> None:
    told: list[str] = []
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        raise ValueError("no")

    task = asyncio.create_task(for_ever("a watch", run, lambda where, e: told.append(f"{where}: {e}")))
    await asyncio.sleep(3.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (runs, told) == (4, ["a watch: no"] * 4)


@virtual
async def test_what_ends_with_time_is_looked_at_at_once_and_then_time_and_again() -> None:
    looks: list[float] = []
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(each(60.0, lambda: looks.append(loop.time())))
    await asyncio.sleep(130.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert looks == [0.0, 60.0, 120.0]


async def passed(seconds: float) -> None:
    """So much of virtual time."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(seconds, over.set_result, None)
    await over


class Slow:
    """Engines that take their time to say what they serve."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.done = seconds, False

    async def check(self) -> None:
        await passed(self.seconds)
        self.done = True


@pytest.mark.parametrize(("seconds", "waited", "done"), [(1.0, 1.0, True), (60.0, FIRST_LOOK_SECONDS, False)])
def test_starting_waits_for_a_first_look_and_not_for_long(seconds: float, waited: float, done: bool) -> None:
    @virtual
    async def run() -> None:
        engines = Slow(seconds)
        await first_look(cast(HealthChecks, engines))
        assert (asyncio.get_running_loop().time(), engines.done) == (waited, done)

    run()


class Down:
    """An engine that nothing is asked of."""

    name = "e"
    adaptive_limit = None
    up = False

    def report_load(self, report: None) -> None:
        """It reports none."""


class Watched:
    """What `watch` is given, and which tasks it began."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.begun: list[str] = []
        self.events: list[tuple[Any, ...]] = []
        self.all = [Down()] * 2
        self.released = 0

    def runs(self, name: str) -> Any:
        async def run(*arguments: Any) -> None:
            self.begun.append(" ".join([name, *map(str, arguments)]))
            await asyncio.Event().wait()

        return run

    async def asked(self, *, reload: bool = False) -> list[str]:
        """The names of what was begun."""
        backends: Any = SimpleNamespace(
            all=self.all,
            capacity_changed=lambda: None,
            started=lambda engine, at: None,
        )
        health_checks: Any = SimpleNamespace(run=self.runs("engines"))
        others = [(name, self.runs(name)) for name in ("files", "watchdog", *(["reload"] if reload else []))]
        others.append(("keys", partial(each, 5.0, lambda: self.begun.append("keys"))))
        log: Any = SimpleNamespace(event=lambda *words, **fields: self.events.append((*words, fields)))
        async with AsyncExitStack() as stack:
            watch(
                self.settings, backends, health_checks, others, asyncio.get_running_loop(), log,
                lambda where, e: self.begun.append(f"fault {where}"), stack,
            )  # fmt: skip
            await passed(12.0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the stack's end ends them"
        return sorted(self.begun)


@pytest.mark.parametrize(
    ("settings", "reload", "begun"),
    [
        ({"probe": "on"}, False, ["engines 10.0", "files", "watchdog"]),
        ({"probe": "off"}, True, ["engines 10.0", "files", "reload", "watchdog"]),
        ({"probe": "off", "refresh_seconds": 3.0}, False, ["engines 3.0", "files", "watchdog"]),
    ],
)
@virtual
async def test_what_is_watched_is_what_the_settings_ask_for(
    settings: dict[str, Any], reload: bool, begun: list[str]
) -> None:
    watched = Watched(**{"max_inflight": 9, "load_seconds": 0.0, "refresh_seconds": 10.0} | settings)
    assert await watched.asked(reload=reload) == sorted([*begun, *["keys"] * 3])


@pytest.mark.parametrize(
    ("settings", "every", "weight"),
    [
        ({"load_seconds": 1.0, "load_weight": 2.0}, 1.0, 2.0),
        ({"load_seconds": 0.0, "load_weight": 2.0}, 7.0, 0.0),
        ({"load_seconds": 1.0, "load_weight": 0.0}, 1.0, 0.0),
        ({"load_seconds": 1.0, "load_weight": 0.0, "max_inflight": 0}, 1.0, 0.0),
        ({"load_seconds": 0.0, "load_weight": 0.0, "max_inflight": 0}, 7.0, 0.0),
    ],
)
def test_engines_are_asked_for_their_load_as_the_settings_say_and_for_their_start_always(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], every: float, weight: float
) -> None:
    made: list[Any] = []

    class Noting:
        def __init__(self, engines: Any, **more: Any) -> None:
            made.append((engines(), more))

        async def run(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(watches, "LoadPoller", Noting)
    monkeypatch.setattr(watches, "LimitTicker", Noting)
    watched = Watched(**{"max_inflight": 9, "refresh_seconds": 7.0} | settings)
    run_virtual(watched.asked())
    asked = [more for _, more in made if "every" in more]
    assert [(more["every"], more["weight"], more["spare"]) for more in asked] == [(every, weight, 7.0)]
    paced = [more for _, more in made if "on_large" in more]
    assert len(paced) == (settings.get("max_inflight") == 0)
    for more in paced:
        more["on_large"](SimpleNamespace(name="e"), 7)
        more["on_room"]()
    assert watched.events == [("info", "engine limit changed", {"backend": "e", "max_inflight": 7})] * len(paced)
    assert all(engines == watched.all for engines, _ in made)


@pytest.mark.parametrize(("max_inflight", "ticks"), [(0, 1), (9, 0)])
@virtual
async def test_adaptive_limits_have_their_ticks(
    monkeypatch: pytest.MonkeyPatch, max_inflight: int, ticks: int
) -> None:
    begun: list[str] = []

    async def ran(name: str, run: object, fault: object) -> None:
        begun.append(name)

    monkeypatch.setattr(watches, "for_ever", ran)
    await Watched(max_inflight=max_inflight, load_seconds=0.0, refresh_seconds=10.0).asked(reload=False)
    assert begun.count("the ticks of adaptive limits") == ticks

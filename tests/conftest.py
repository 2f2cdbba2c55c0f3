"""Owns what every test gets: Hypothesis profiles, the leak check, the choice of markers, the fake engine."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from tests.kit.engine import Engine
from tests.kit.leaks import check_groups, check_tasks, recorded_groups

# HYPOTHESIS_PROFILE=deep is the nightly look; `fast` keeps the pure tests under seconds.
settings.register_profile("fast", deadline=None, max_examples=60)
settings.register_profile("deep", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`vllm` tests need an installed vLLM: they run only where `-m vllm` asks for them by name.

    They are deselected, not skipped: an ordinary run then has no skips that mean nothing. `e2e` tests
    run by default and are left out with `-m "not e2e"`.
    """
    if "vllm" in config.option.markexpr:
        return
    chosen = [item for item in items if item.get_closest_marker("vllm") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test and its other fixtures: no task in its loop, no flight in any FlightGroup.

    Only an async test gets a loop for it; a pure one costs nothing.
    """
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_leaked_tasks")
    with recorded_groups() as groups:
        yield
    check_groups(groups)


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    yield
    await check_tasks()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """A scripted fake engine: nothing is answered until the test says so."""
    async with Engine() as engine:
        yield engine


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its reading end and its writing end; a test may close either."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it

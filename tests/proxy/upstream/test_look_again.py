"""The look for models that were loaded meanwhile: shared, limited in time and number, harmless where it fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from proxy.errors import Code, GatewayError
from proxy.upstream.health_checks import AGAIN, LIST_SECONDS, HealthChecks
from tests.kit.clock import virtual

NEVER = object()


class Engines:
    """Engines that are up or not, and what each answers to /v1/models."""

    def __init__(self, *answers: Any) -> None:
        self.asked: list[float] = []
        self.found: list[list[str]] = []
        self.loop = asyncio.get_running_loop()
        self.all = [SimpleNamespace(up=answer is not None, pool=self, answer=answer) for answer in answers]
        for engine in self.all:
            engine.pool = SimpleNamespace(get=self.answering(engine.answer))
        self.checks = HealthChecks(cast(Any, self), clock=self.loop.time)

    def answering(self, answer: Any) -> Any:
        async def get(path: str) -> tuple[int, bytes]:
            assert path == "/v1/models"
            self.asked.append(self.loop.time())
            if answer is NEVER:
                await asyncio.Event().wait()
            if isinstance(answer, Exception):
                raise answer
            return (200, answer) if isinstance(answer, bytes) else (503, b"")

        return get

    def record_models(self, engine: Any, models: list[dict[str, Any]]) -> None:
        self.found.append([model["id"] for model in models])


@virtual
async def test_callers_of_one_time_share_a_look_and_the_next_one_waits() -> None:
    engines = Engines(b'{"data": [{"id": "a"}, {"id": 5}, 7]}', None)
    begin = engines.loop.time()
    await asyncio.gather(*(engines.checks.look_again(patient=n > 2) for n in range(5)))
    assert engines.asked == [begin]
    assert engines.found == [["a"]]
    await engines.checks.look_again(patient=False)
    assert engines.asked == [begin]
    await asyncio.gather(*(engines.checks.look_again(patient=True) for _ in range(3)))
    assert engines.asked == [begin, begin + AGAIN]
    await asyncio.sleep(AGAIN)
    await engines.checks.look_again(patient=False)
    assert len(engines.asked) == 3


@virtual
async def test_an_engine_that_fails_or_is_slow_ends_no_look() -> None:
    error = GatewayError(Code.UPSTREAM_UNREACHABLE, "away")
    engines = Engines(error, b"[", b'{"data": 5}', b"\xff", NEVER, "503", b'{"data": [{"id": "a"}]}')
    begin = engines.loop.time()
    await engines.checks.look_again(patient=True)
    assert engines.loop.time() - begin == LIST_SECONDS
    assert engines.found == [[], ["a"]]


@virtual
async def test_a_caller_that_leaves_ends_no_look_and_close_does() -> None:
    engines = Engines(NEVER)
    first, second = (asyncio.ensure_future(engines.checks.look_again(patient=True)) for _ in range(2))
    await asyncio.sleep(0.5)
    first.cancel()
    await asyncio.sleep(0.5)
    assert not second.done()
    await engines.checks.close()
    await asyncio.gather(first, second, return_exceptions=True)
    assert second.cancelled()

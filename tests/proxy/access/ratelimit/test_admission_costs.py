"""Admission by itself: what a request is charged by, once or in two steps, and what the settings ask for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from proxy.access.caller import Caller, Rates
from proxy.access.ratelimit.admission import Admission, admission_for
from proxy.access.ratelimit.buckets import Limit, Limits, LocalLimits
from proxy.access.ratelimit.limiter import Limiter
from proxy.config.loader import load
from proxy.server.context import RequestContext
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from proxy.wire.http.media_type import Media
from proxy.wire.openai import decode
from proxy.wire.raw_body import read_passed
from tests.kit.mocked import mocked_request
from tests.kit.running import lines
from tests.proxy.telemetry.test_metrics import samples

ALICE = Caller(id="alice", rates=Rates(tokens_per_minute=1000))
BOB = Caller(id="bob", rates=Rates(tokens_per_minute=1000))


def call(path: str = "/v1/x", **more: Any) -> RequestContext:
    return RequestContext(cast(Any, mocked_request("POST", path)), "id", **more)


def admission(caller: Caller = ALICE) -> Admission:
    return Admission(Limiter(LocalLimits(0.0), clock=lambda: 0.0), lambda request: caller, assumed=100)


ASK = decode("chat", b'{"messages":[{"content":"abcd"}],"max_tokens":7}')
BODY = read_passed(Media("json"), b'{"max_tokens":9}')


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        (call(cost=(3, 4), api_request=ASK), 7),
        (call(api_request=ASK), 5 + 7),
        (call(), 4 + 9),
        (call("/tokenize"), 4),
    ],
    ids=["known", "a request", "a body", "a body that generates nothing"],
)
async def test_a_request_is_charged_by_what_is_known_of_it(asked: RequestContext, tokens: int) -> None:
    under_test = admission()
    await under_test(asked, BODY)
    assert asked.hold is not None
    assert (asked.hold.claim.tokens, asked.hold.claim.caller) == (tokens, "alice")
    asked.hold.close()


async def test_a_request_let_in_by_its_head_is_charged_after_it() -> None:
    under_test = admission()
    asked = call(api_request=ASK)
    await under_test.head(asked)
    first = asked.hold
    assert first is not None
    assert (first.claim.tokens, under_test.limiter.local.streams) == (0, 1)
    await under_test(asked)
    assert asked.hold is first
    assert (first.claim.tokens, under_test.limiter.local.streams) == (12, 1)
    first.close()


async def test_a_key_says_who_it_is_before_an_address_does() -> None:
    for act in ("__call__", "head"):
        asked = call(caller=BOB)
        await getattr(admission(), act)(asked)
        assert asked.hold is not None
        assert asked.hold.claim.caller == "bob"
        asked.hold.close()


async def test_who_has_no_limit_has_nothing_to_give_back() -> None:
    under_test = admission(Caller(id="free"))
    asked = call()
    await under_test(asked)
    await under_test.head(asked)
    assert asked.hold is None


class Settings:
    """What the settings come to."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log"
        self.log = Log(os.open(self._path, os.O_WRONLY | os.O_CREAT))
        self.metrics = Metrics()

    async def made(self, stack: AsyncExitStack, *flags: str, redis: str | None = None, keyed: bool = False) -> Any:
        return await admission_for(
            load(list(flags), {}),
            redis,
            self.metrics,
            self.log,
            stack,
            identify=lambda request: ALICE,
            keyed=keyed,
        )

    def lines(self) -> list[dict[str, Any]]:
        self.log.close(30)
        return lines(self._path)


@pytest.mark.parametrize(
    ("flags", "keyed", "made"),
    [
        ((), False, False),
        ((), True, True),
        (("--rate-limit-rps", "1"), False, True),
        (("--rate-limit-streams", "1"), False, True),
        (("--global-limit-streams", "1"), False, True),
        (("--rate-limit-tokens-per-minute", "60"), False, True),
    ],
)
async def test_nothing_is_asked_where_nothing_is_limited(
    tmp_path: Path, flags: Sequence[str], keyed: bool, made: bool
) -> None:
    async with AsyncExitStack() as stack:
        found = await Settings(tmp_path).made(stack, *flags, keyed=keyed)
        assert (found is not None) is made


async def test_each_setting_is_its_own_ceiling(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    async with AsyncExitStack() as stack:
        flags = ["--rate-limit-rps", "2", "--rate-limit-burst", "3", "--rate-limit-tokens-per-minute", "60"]
        flags += ["--rate-limit-streams", "4", "--global-limit-rps", "5", "--global-limit-burst", "6"]
        flags += ["--global-limit-tokens-per-minute", "600", "--global-limit-streams", "7"]
        found = await settings.made(stack, *flags)
        asked = call(caller=Caller(id="a"))
        await found(asked)
        assert asked.hold is not None
        assert asked.hold.claim.own == Limits(Limit(2, 3), Limit(1, 60), 4)
        assert asked.hold.claim.everyone == Limits(Limit(5, 6), Limit(10, 600), 7)
        told = samples(settings.metrics)
        assert (told["gateway_limited_requests"], told["gateway_limited_callers"]) == (1, 1)
        assert "gateway_limits_local" not in told
        asked.hold.close()
        assert samples(settings.metrics)["gateway_limited_requests"] == 0


async def test_where_redis_is_away_each_process_limits_alone_and_says_so(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    async with AsyncExitStack() as stack:
        found = await settings.made(stack, "--rate-limit-rps", "1", redis=f"unix://{tmp_path}/none.sock")
        assert samples(settings.metrics)["gateway_limits_local"] == 1
        asked = call(caller=Caller(id="a"))
        await found(asked)
        assert asked.hold is not None
        asked.hold.close()
        assert samples(settings.metrics)["gateway_limit_fallbacks_total"] == 1
    assert [(line["level"], line["msg"]) for line in settings.lines()] == [
        ("warning", "limits are each process's own")
    ]

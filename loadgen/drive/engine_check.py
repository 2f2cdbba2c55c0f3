"""Whether an engine stops when a client leaves: its own count of requests against those that are in flight."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec

from loadgen.drive.capture.client import Client
from loadgen.errors import UsageError
from loadgen.record import CancelCheck
from loadgen.spec import Http

POLL: Final = 0.2  # seconds between two readings during the run
SETTLE_POLL: Final = 0.02  # and after it
TIMEOUT: Final = 5.0  # seconds for one reading

_RUNNING: Final = re.compile(
    rb"^(?:vllm:num_requests_(?:running|waiting)|sglang:num_(?:running|queue)_reqs"
    rb"|llamacpp:requests_(?:processing|deferred)|gateway_flights)(?:\{[^\n]*?\})? ([0-9.eE+]+)",
    re.MULTILINE,
)
_ABORTED: Final = re.compile(
    rb"^(?:vllm:request_success_total\{[^\n]*finished_reason=\"abort\"[^\n]*\}"
    rb"|gateway_flights_ended_total\{outcome=\"cancelled\"\}) ([0-9.eE+]+)",
    re.MULTILINE,
)

InFlight = Callable[[int], int]
"""How many of our requests were in flight at any time since this time of CLOCK_MONOTONIC, in nanoseconds."""


class Load(NamedTuple):
    """What an engine's or a gateway's /metrics says."""

    running: float | None  # requests running and waiting
    aborted: float | None  # requests that it stopped because their client had left, ever


def load_of(metrics: bytes) -> Load:
    def total(pattern: re.Pattern[bytes]) -> float | None:
        values = [float(value) for value in pattern.findall(metrics)]
        return sum(values) if values else None

    return Load(total(_RUNNING), total(_ABORTED))


class CancelWatch:
    """Reads the engines' metrics before, during and after a run in which clients leave. Use as `async with`.

    During the run an engine may have `within` seconds to stop: it should have no more requests than we had in
    flight in that time, besides those of the start. After the run it should be back at those within that time.
    """

    def __init__(
        self, urls: Sequence[str], http: Http, targets: Sequence[str], *, within: float, asked: bool
    ) -> None:
        self._urls = urls
        self._http = http
        self._hosts = {urlsplit(target).netloc for target in targets}
        self._asked = asked  # the URLs were given: each must answer
        self._within = within
        self.checks: list[CancelCheck] = []
        self._clients: dict[str, Client] = {}

    async def __aenter__(self) -> CancelWatch:
        try:
            await self._begin()
        except BaseException:  # `async with` does not leave what it has not entered
            await self.__aexit__()
            raise
        return self

    async def _begin(self) -> None:
        """The first readings. Raises UsageError for a URL that was given and has no such metrics."""
        for url in self._urls:
            # A key is for the server under test, not for another that only shows its metrics.
            headers = self._http.headers if urlsplit(url).netloc in self._hosts else ()
            self._clients[url] = Client(msgspec.structs.replace(self._http, headers=headers), kernel=False)
            load = await self._load(url)
            if load is not None and load.running is not None:
                self.checks.append(
                    CancelCheck(url=url, within_s=self._within, before=load.running, aborted_before=load.aborted)
                )
            elif self._asked:
                raise UsageError(
                    f"{url} has no metrics of running requests (vLLM, SGLang, llama.cpp, this gateway)"
                )

    async def __aexit__(self, *error: object) -> None:
        for client in self._clients.values():
            await client.close()

    async def during(self, in_flight: InFlight) -> None:
        """Compare until it is cancelled."""
        while self.checks:
            await asyncio.sleep(POLL)
            for check in self.checks:
                since = time.monotonic_ns() - round(self._within * 1e9)
                load = await self._load(check.url)
                if load is not None and load.running is not None:
                    check.readings += 1
                    check.excess = max(check.excess, load.running - check.before - in_flight(since))

    async def settle(self, left: int) -> None:
        """Wait for the engines to be back at what they had before. `left`: how many requests were cancelled."""
        ended = time.monotonic()
        for check in self.checks:
            check.left = left
            while True:
                load = await self._load(check.url)
                waited = time.monotonic() - ended
                if load is not None and load.running is not None:
                    check.after = load.running
                    if load.aborted is not None:
                        check.aborted = load.aborted - (check.aborted_before or 0.0)
                    if load.running <= check.before:
                        check.settle_s = waited
                        break
                if waited > self._within:
                    break
                await asyncio.sleep(SETTLE_POLL)

    async def _load(self, url: str) -> Load | None:
        try:
            status, body = await self._clients[url].get(url, TIMEOUT)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        return load_of(body) if status == 200 else None

"""Whether an engine stops when clients leave: what its metrics say, and what is concluded from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from loadgen.drive import engine_check
from loadgen.drive.engine_check import CancelWatch, load_of
from loadgen.errors import UsageError
from loadgen.spec import Http
from tests.loadgen.kit.running import on_our_loop
from tests.loadgen.kit.servers import read_request, serving, whole


@pytest.mark.parametrize(
    ("text", "running", "aborted"),
    [
        ("vllm:num_requests_running{a=\"b\"} 3.0\nvllm:num_requests_waiting{a=\"b\"} 2.0\n", 5, None),
        ("vllm:num_requests_running{engine=\"0\"} 1.0\nvllm:num_requests_running{engine=\"1\"} 2.0\n", 3, None),
        ("vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 7.0\n", None, None),
        ("# HELP vllm:num_requests_running 9\nvllm:num_requests_running 1\n", 1, None),
        ("sglang:num_running_reqs{m=\"x\"} 2\nsglang:num_queue_reqs{m=\"x\"} 1\n", 3, None),
        ("llamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n", 3, None),
        ("gateway_flights 4\ngateway_flights_ended_total{outcome=\"cancelled\"} 6\n", 4, 6),
        ("vllm:request_success_total{a=\"b\",finished_reason=\"abort\"} 8\n", None, 8),
        ("vllm:request_success_total{finished_reason=\"stop\"} 8\n", None, None),
        ("", None, None),
    ],
)  # fmt: skip
def test_each_engines_names_are_known(text: str, running: float | None, aborted: float | None) -> None:
    assert load_of(text.encode()) == (running, aborted)


class Pages:
    """A server whose /metrics shows one number after another, the last one for ever."""

    def __init__(self, *running: float) -> None:
        self._numbers: Iterator[float] = iter(running)
        self._last = 0.0
        self.requests: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.requests.append(await read_request(reader))
            self._last = next(self._numbers, self._last)
            writer.write(whole("200 OK", f"vllm:num_requests_running {self._last}\n".encode()))
            await writer.drain()


async def checked(pages: Pages, in_flight: int, *, readings: int = 3, within: float = 60) -> CancelWatch:
    """The watch of a run with so many requests in flight all the time, of which one was cancelled. `within` is
    long, so that a slow machine too sees the engine get back."""
    async with (
        serving(pages.handle) as url,
        CancelWatch([f"{url}/metrics"], Http(), [url], within=within, asked=True) as watch,
    ):
        (check,) = watch.checks
        seen = asyncio.Event()

        def flying(since_ns: int) -> int:
            if check.readings >= readings:
                seen.set()
            return in_flight

        during = asyncio.create_task(watch.during(flying))
        await seen.wait()
        during.cancel()
        await asyncio.gather(during, return_exceptions=True)
        await watch.settle(1)
    return watch


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_check, "POLL", 0.005)


@on_our_loop
async def test_an_engine_that_has_no_more_than_is_in_flight_and_gets_back_has_stopped() -> None:
    (check,) = (await checked(Pages(1, 4, 5, 5, 2, 1), 4)).checks
    assert check.problem is None
    assert (check.before, check.excess) == (1, 0)
    assert check.settle_s is not None


@on_our_loop
async def test_an_engine_with_more_than_is_in_flight_has_not() -> None:
    (check,) = (await checked(Pages(0, 4, 6, 5, 0), 4)).checks
    assert check.excess == 2
    assert check.problem is not None
    assert "2 requests more than were in flight" in check.problem


@on_our_loop
async def test_an_engine_that_does_not_get_back_has_not() -> None:
    (check,) = (await checked(Pages(0, 3), 4, within=0.2)).checks
    assert (check.excess, check.settle_s, check.after) == (0, None, 3)
    assert check.problem is not None
    assert "still had 3 requests (0 before)" in check.problem


@on_our_loop
async def test_the_key_goes_to_the_server_under_test_alone() -> None:
    ours, other = Pages(0), Pages(0)
    http = Http(headers=(("Authorization", "Bearer sk-secret"),))
    async with (
        serving(ours.handle) as target,
        serving(other.handle) as elsewhere,
        CancelWatch([target, elsewhere], http, [target], within=1, asked=True),
    ):
        pass
    assert b"sk-secret" in ours.requests[0]
    assert b"sk-secret" not in other.requests[0]


@on_our_loop
async def test_a_page_without_such_metrics_is_an_error_only_if_it_was_named() -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(whole("404 Not Found", b""))

    async with serving(nothing) as url:
        async with CancelWatch([url], Http(), [url], within=1, asked=False) as watch:
            assert watch.checks == []
            await watch.settle(3)
        with pytest.raises(UsageError, match="has no metrics of running requests"):
            async with CancelWatch([url], Http(), [url], within=1, asked=True):
                pass

"""What engines report of their load: read from any page, weighed, and asked for gently."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.backends import Backend
from proxy.errors import Code, GatewayError
from proxy.load import SILENT, TIMEOUT, LoadWatch, Report, parse, weigh
from proxy.upstream import Pool
from tests.clock import virtual

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b{c} 1"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0 1700000000000
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.9
vllm:num_requests_swapped 7
vllm:time_to_first_token_seconds_bucket{le="0.001"} 12.0
"""


@pytest.mark.parametrize(
    ("page", "report"),
    [
        (PAGE, Report(5.0, 4.0, 0.9)),
        (PAGE.replace(b"kv_cache", b"gpu_cache"), Report(5.0, 4.0, 0.9)),
        (b"vllm:num_requests_waiting 2\n", Report(0.0, 2.0, 0.0)),
        (b"vllm:num_requests_waiting\t2\r\n", Report(0.0, 2.0, 0.0)),
        (b"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 95\n", Report(1.0, 0.0, 1.0)),
        (b"vllm:num_requests_running NaN\nvllm:num_requests_waiting 1e0\n", Report(0.0, 1.0, 0.0)),
        (b"vllm:num_requests_running -1\nvllm:num_requests_running +Inf\n", None),
        (b"vllm:num_requests_running x\n", None),
        (b"vllm:kv_cache_usage_perc 0.5\n", None),
        (b"# vllm:num_requests_running 1\nxvllm:num_requests_running 1\n", None),
        (b"llamacpp:requests_processing 1\n", None),
        (b"", None),
    ],
)
def test_only_the_lines_that_matter_are_read(page: bytes, report: Report | None) -> None:
    assert parse(page) == report


@given(st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(PAGE.split())).map(b" ".join))
def test_no_page_is_an_error(page: bytes) -> None:
    report = parse(page)
    assert report is None or (min(report) >= 0 and report.kv_cache <= 1)


@pytest.mark.parametrize(
    ("report", "ours", "weight", "load"),
    [
        (Report(0, 0, 0), 0, 1.0, 0.0),
        (Report(3, 0, 0), 3, 1.0, 0.0),  # all ours: counted already
        (Report(5, 0, 0), 3, 1.0, 2.0),
        (Report(3, 2, 0), 5, 1.0, 2.0),  # what waits counts once more
        (Report(1, 0, 0.8), 9, 1.0, 0.0),
        (Report(1, 0, 0.9), 9, 1.0, 4.0),
        (Report(1, 0, 1.0), 9, 1.0, 8.0),
        (Report(5, 0, 0), 3, 0.5, 1.0),
        (Report(5, 9, 1), 3, 0.0, 0.0),
    ],
)
def test_a_report_weighs_what_others_have_there_what_waits_and_a_full_cache(
    report: Report, ours: int, weight: float, load: float
) -> None:
    assert weigh(report, ours, weight) == pytest.approx(load)


class Page:
    """A pool whose /metrics is as told; None never answers."""

    def __init__(self, answer: tuple[int, bytes] | Exception | None) -> None:
        self.answer = answer
        self.asked = 0

    async def get(self, path: str) -> tuple[int, bytes]:
        assert path == "/metrics"
        self.asked += 1
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


def engine(answer: Any, *, up: bool | None = True) -> tuple[Backend, Page]:
    page = Page(answer)
    return Backend(f"e{id(page)}", cast(Pool, page), 9, up=up), page


def watch(*engines: Backend, **more: Any) -> LoadWatch:
    return LoadWatch(lambda: engines, every=1.0, clock=asyncio.get_running_loop().time, **more)


@virtual
async def test_each_engine_s_report_becomes_its_load() -> None:
    busy, _ = engine((200, PAGE))
    idle, _ = engine((200, b"vllm:num_requests_running 0\n"))
    await watch(busy, idle).look()
    assert busy.reported == pytest.approx(9 + 4 + 4)
    assert idle.reported == 0.0
    assert busy.report == Report(5.0, 4.0, 0.9)


@virtual
async def test_with_one_engine_nothing_is_asked() -> None:
    alone, page = engine((200, PAGE))
    await watch(alone).look()
    assert page.asked == 0


@pytest.mark.parametrize("answer", [(404, b""), (200, b"llamacpp:requests_processing 1\n"), (200, b"")])
@virtual
async def test_an_engine_that_reports_nothing_is_left_alone_for_a_while(answer: tuple[int, bytes]) -> None:
    other, _ = engine((200, PAGE))
    silent, page = engine(answer)
    looking = watch(other, silent)
    for _ in range(int(SILENT)):
        await looking.look()
        await asyncio.sleep(1.0)
    assert (page.asked, silent.reported) == (1, 0.0)
    await looking.look()
    assert page.asked == 2


@virtual
async def test_one_that_is_down_is_not_asked_and_one_that_fails_has_no_load() -> None:
    down, page = engine((200, PAGE), up=False)
    broken, _ = engine(GatewayError(Code.UPSTREAM_UNREACHABLE, "gone"))
    for each in (down, broken):
        each.reported = 5.0
    await watch(down, broken).look()
    assert (page.asked, down.reported, broken.reported) == (0, 0.0, 0.0)


@virtual
async def test_rounds_never_overlap_however_slow_an_engine_is() -> None:
    hung, page = engine(None)
    other, fine = engine((200, PAGE))
    task = asyncio.create_task(watch(hung, other).run())
    await asyncio.sleep(30.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rounds = int(30.0 / (1.0 + TIMEOUT))
    assert page.asked == fine.asked
    assert page.asked in (rounds, rounds + 1)

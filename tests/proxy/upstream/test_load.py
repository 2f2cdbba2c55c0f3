"""What an engine reports of its load: read from any page, and weighed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.load import LoadReport, parse, weigh

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
        (PAGE, LoadReport(5.0, 4.0, 0.9)),
        (PAGE.replace(b"kv_cache", b"gpu_cache"), LoadReport(5.0, 4.0, 0.9)),
        (b"vllm:num_requests_waiting 2\n", LoadReport(0.0, 2.0, 0.0)),
        (b"vllm:num_requests_waiting\t2\r\n", LoadReport(0.0, 2.0, 0.0)),
        (b"vllm:num_requests_running 1\nvllm:kv_cache_usage_perc 95\n", LoadReport(1.0, 0.0, 1.0)),
        (b"vllm:num_requests_running NaN\nvllm:num_requests_waiting 1e0\n", LoadReport(0.0, 1.0, 0.0)),
        (b"vllm:num_requests_running -1\nvllm:num_requests_running +Inf\n", None),
        (b"vllm:num_requests_running x\n", None),
        (b"vllm:kv_cache_usage_perc 0.5\n", None),
        (b"# vllm:num_requests_running 1\nxvllm:num_requests_running 1\n", None),
        (b"llamacpp:requests_processing 1\n", None),
        (b"", None),
    ],
)
def test_only_the_lines_that_matter_are_read(page: bytes, report: LoadReport | None) -> None:
    assert parse(page) == report


@given(st.binary() | st.text().map(str.encode) | st.lists(st.sampled_from(PAGE.split())).map(b" ".join))
def test_no_page_is_an_error(page: bytes) -> None:
    report = parse(page)
    assert report is None or (min(report[:3]) >= 0 and report.kv_cache <= 1)


@pytest.mark.parametrize(
    ("report", "ours", "weight", "load"),
    [
        (LoadReport(0, 0, 0), 0, 1.0, 0.0),
        (LoadReport(3, 0, 0), 3, 1.0, 0.0),  # all ours: counted already
        (LoadReport(5, 0, 0), 3, 1.0, 2.0),
        (LoadReport(3, 2, 0), 5, 1.0, 2.0),  # what waits counts once more
        (LoadReport(1, 0, 0.8), 9, 1.0, 0.0),
        (LoadReport(1, 0, 0.9), 9, 1.0, 4.0),
        (LoadReport(1, 0, 1.0), 9, 1.0, 8.0),
        (LoadReport(5, 0, 0), 3, 0.5, 1.0),
        (LoadReport(5, 9, 1), 3, 0.0, 0.0),
    ],
)
def test_a_report_weighs_what_others_have_there_what_waits_and_a_full_cache(
    report: LoadReport, ours: int, weight: float, load: float
) -> None:
    assert weigh(report, ours, weight) == pytest.approx(load)


@pytest.mark.parametrize(
    ("line", "started"),
    [
        (b"process_start_time_seconds 1.76e+09\n", 1.76e9),
        (b"process_start_time_seconds\t12\n", 12.0),
        (b"process_start_time_seconds nan\n", None),
        (b"process_start_time_seconds +Inf\n", None),
        (b"process_start_time_seconds soon\n", None),
        (b"# HELP process_start_time_seconds Start time\n", None),
        (b'process_start_time_seconds{pid="1"} 12\n', None),
        (b"other_process_start_time_seconds 12\n", None),
        (b"", None),
    ],
)
def test_when_a_process_began_is_read_from_its_own_line(line: bytes, started: float | None) -> None:
    report = parse(PAGE + line)
    assert report is not None
    assert report.started == started

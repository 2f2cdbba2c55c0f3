"""What is read of a /metrics page: vLLM's and the gateway's figures, by our names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loadgen.cli.flags.engine import metrics_url
from loadgen.scraper import figures_of, kind_of_page
from tests.kit.patience import run_process

GATEWAY = b"""\
# TYPE gateway_flights gauge
gateway_flights 4
gateway_subscribers 6
gateway_queue_depth 2
gateway_backend_requests_running{backend="http://a"} 3
gateway_backend_requests_running{backend="http://b"} 1
gateway_backend_kv_cache_usage{backend="http://a"} 0.5
gateway_backend_kv_cache_usage{backend="http://b"} NaN
gateway_coalesced_total{endpoint="chat"} 9
gateway_cache_operations_total{op="hit"} 5
gateway_cache_operations_total{op="miss"} 7
"""


def test_the_gateways_figures_are_read() -> None:
    assert kind_of_page(GATEWAY) == "gateway"
    assert figures_of(GATEWAY) == {
        "running": 4, "waiting": 2, "subscribers": 6, "backend_running": 4, "kv_use": 0.5, "coalesced": 9,
        "answers_hit": 5, "answers_miss": 7,
    }  # fmt: skip


@pytest.mark.parametrize("value", [b"1e999", b"-1e999", b"NaN"])
def test_a_figure_that_is_not_finite_is_none(value: bytes) -> None:
    """It was null in the file of readings, and ended them."""
    page = b"vllm:num_requests_running %b\nvllm:num_requests_waiting 1\n" % value
    assert figures_of(page) == {"waiting": 1}
    huge = b'vllm:num_requests_running{engine="0"} 1e308\nvllm:num_requests_running{engine="1"} 1e308\n'
    assert figures_of(huge) == {}


def test_a_page_of_vllm_is_read_by_whole_names() -> None:
    page = b'vllm:num_requests_running{model_name="a b"} 2.0\nvllm:num_requests_waiting_by_reason{reason="x"} 9\n'
    assert kind_of_page(page) == "vllm"
    assert figures_of(page) == {"running": 2}


@pytest.mark.parametrize(
    "page", [b"", b"\xff\xfe", b"<html>", b"other_total 3\n", b"vllm:num_requests_running x\n"]
)
def test_a_page_of_something_else_has_no_figures(page: bytes) -> None:
    assert figures_of(page) == {}


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://a:1", "http://a:1/metrics"),
        ("http://a:1/", "http://a:1/metrics"),
        ("http://a/m/metrics", "http://a/m/metrics"),
        ("off", "off"),
    ],
)
def test_an_address_gets_the_usual_path(text: str, url: str) -> None:
    assert metrics_url(text) == url


def test_the_names_are_those_that_the_gateway_has() -> None:
    """Every gateway_ name that is read is in the frozen list of its metrics."""
    frozen = (Path(__file__).parent.parent.parent / "public_names.txt").read_text()
    for name in ("flights", "subscribers", "queue_depth"):
        assert f"metric gateway_{name}" in frozen


def test_the_process_imports_little() -> None:
    """It starts with each run, beside what is measured."""
    script = "import sys; from loadgen.cli import main; import loadgen.scraper; print(*sys.modules)"
    found = run_process([sys.executable, "-c", script], capture_output=True, text=True, seconds=60, check=True)
    modules = set(found.stdout.split())
    assert "loadgen.scraper" in modules
    assert modules & {"aiohttp", "asyncio", "loadgen.drive", "rich"} == set()

"""The benchmarks page shows the figures of out/sample, and what is not measured by its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from ops.bench.page import PAGE, SECTIONS, text_of, with_sections
from ops.bench.table import Part, Result, picture, ran, render
from ops.bench.workloads import NAMES
from tests.kit.missing import module


def test_the_page_is_the_one_that_its_figures_make() -> None:
    page = PAGE.read_text("utf-8")
    assert page == with_sections(page)


def test_a_section_without_figures_says_which_command_makes_them(tmp_path: Path) -> None:
    page = with_sections(PAGE.read_text("utf-8"), tmp_path)
    assert page.count("Not measured yet: `python -m ops.bench") == len(SECTIONS)
    assert with_sections(page, tmp_path) == page


def test_a_page_without_a_place_for_a_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one place for the section proxies"):
        with_sections("# Benchmarks\n", tmp_path)
    page = PAGE.read_text("utf-8")
    with pytest.raises(ValueError, match="one place"):
        with_sections(page + page, tmp_path)


def part(subject: str, workload: str, round_: int, cpu_us: float, ttft: float = 10.0) -> Part:
    return Part(
        subject=subject, workload=workload, round=round_, done=10, events=10, seconds=1.0, cpu_us=cpu_us, user=0.5,
        busy=0.5, ttft_ms=(ttft, ttft, ttft), gap_ms=(1.0, 1.0, 1.0), rss_mb=50.0, start_s=1.0, verdicts={},
        wrong=[],
    )  # fmt: skip


def result(*parts: Part) -> Result:
    names = list(dict.fromkeys(one.subject for one in parts))
    return Result(
        command="a command", machine="A machine", seconds=9.0, subjects=names, versions={}, parts=[*parts]
    )


def test_ratios_to_vllm_router_are_formed_in_each_round() -> None:
    found = render(
        result(
            *(part("vllm-router-rr", "json", n, cpu, 10.0) for n, cpu in enumerate((50.0, 100.0, 200.0))),
            *(part("gateway", "json", n, cpu, 12.0) for n, cpu in enumerate((100.0, 150.0, 800.0))),
            *(part("vllm-router-rr", "ttft", n, 900.0, 11.0) for n in range(3)),
            *(part("gateway", "ttft", n, 900.0, ttft) for n, ttft in enumerate((11.5, 10.5, 12.0))),
        )
    )
    assert "`a command` (9 s). A machine. 3 rounds" in found
    assert "| CPU, times: small JSON, 32 connections | 2.00 (1.50 to 4.00) |" in found
    assert "| TTFT p50, ms more: 50 requests/s, 8 tokens × 10 ms | 0.50 (-0.50 to 1.00), no finding |" in found
    assert "ms more: small JSON" not in found, "in a closed loop TTFT is that of the queue"


def test_without_vllm_router_there_is_nothing_to_compare_with() -> None:
    assert "compared with" not in render(result(part("gateway", "json", 0, 100.0), part("nginx", "json", 0, 50.0)))


def test_the_added_ttft_is_the_difference_to_direct() -> None:
    found = render(result(part("direct", "ttft", 0, 0.0, 10.0), part("nginx", "ttft", 0, 1.0, 10.8)))
    assert "| TTFT p50, ms more: 50 requests/s, 8 tokens × 10 ms | 0.80, no finding |" in found
    assert "CPU, times" not in found


def test_the_plot_names_every_subject_but_direct() -> None:
    module("matplotlib", "plots")
    names = ("direct", "nginx", "gateway")
    drawn = picture(result(*(part(name, workload, 0, 100.0) for workload in NAMES for name in names)))
    assert drawn is not None
    assert "nginx" in drawn.decode()
    assert "direct" not in drawn.decode()
    assert picture(result()) is None


def test_the_figures_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / SECTIONS["proxies"].figures
    path.parent.mkdir(parents=True)
    kept = result(part("gateway", "json", 0, 100.0))
    path.write_bytes(msgspec.json.encode(kept))
    assert text_of(SECTIONS["proxies"], tmp_path) == render(kept).strip()


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--out", "out/x.json"], "--out out/x.json"),
        (["--out", "/one/two/x.json"], "--out x.json"),
        (["--command", "a=/usr/bin/python ../b/c.py {port}"], "--command 'a=python c.py {port}'"),
        (["--base", "http://127.0.0.1:8000/v1"], "--base http://127.0.0.1:8000/v1"),
    ],
)
def test_a_recorded_command_names_no_folder_of_one_machine(
    argv: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["program", *argv])
    assert ran("ops.bench") == f"python -m ops.bench {shown}"


def test_a_plot_is_shown_where_there_is_one(tmp_path: Path) -> None:
    section: Any = msgspec.structs.replace(SECTIONS["streams"], render=lambda data: data.decode())
    path = tmp_path / section.figures
    path.parent.mkdir(parents=True)
    path.write_text("figures")
    assert text_of(section, tmp_path) == "figures"
    path.with_suffix(".svg").touch()
    assert text_of(section, tmp_path).endswith("](../../out/sample/capacity/streams.svg)")

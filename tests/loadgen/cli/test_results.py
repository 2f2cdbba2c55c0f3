"""What a run says at its end: results on stdout, one JSON document for scripts, and all of it on a full disk."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadgen.analysis import Bin, digits, histogram, in_order, measure_records, summarise
from loadgen.cli.terminal.results import histogram_lines, table_lines, text_of
from loadgen.record import Record, Run
from loadgen.report import Table, View, report_of
from tests.kit.engine import Engine, Script, Turn
from tests.kit.engine_scripts import echo_script, timed_script
from tests.loadgen.cli.test_cli import LENIENT, ROOT, Start, echo, start
from tests.loadgen.kit.sampling import Load, ab_records, records, run_of, sweep_records

__all__ = ["echo", "start"]  # fixtures


def viewed(seen: list[Record], run: Run | None = None, slos: dict[str, float] | None = None) -> View:
    run = run or run_of()
    return report_of(run, in_order(measure_records(seen)), summarise(run, seen, slos)).view


def rows(text: str) -> dict[str, list[str]]:
    """Name -> its figures, of each row of a text's table."""
    found = re.finditer(r"^  (\S.*?)((?: +~?[\d,.]+){6})$", text, re.MULTILINE)
    return {row[1]: row[2].split() for row in found}


def test_the_terminal_ends_with_one_table_of_every_measure_and_length() -> None:
    text = text_of(viewed(list(records(Load(requests=400, fault=0.02))), slos={"ttft": 60.0}))
    table = rows(text)
    assert text.splitlines()[5].split() == ["mean", "p50", "p90", "p95", "p99", "max"]
    assert [*table] == ["TTFT", "TPOT", "ITL", "E2E", "input tokens", "output tokens"]
    for figures in table.values():
        numbers = [float(figure.strip("~").replace(",", "")) for figure in figures]
        assert numbers[1:] == sorted(numbers[1:])
    for words in ("req/s", "tok/s", "goodput", "good req/s", "failed             ", "TTFT, ms", "■"):
        assert words in text


def test_a_figure_whose_sample_is_too_small_for_an_interval_is_marked_and_there() -> None:
    few = rows(text_of(viewed(list(records(Load(requests=20, fault=0))))))
    assert not few["TTFT"][1].startswith("~"), "p50 of 20"
    assert [figure[0] for figure in few["TTFT"][2:5]] == ["~"] * 3


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_line_of_the_table_is_longer_than_the_terminal(width: int) -> None:
    view = viewed(list(sweep_records((2, 8, 20), requests=60)), slos={"ttft": 60.0})
    for table in view.results:
        lines = table_lines(table, width)
        assert max(map(len, lines[1:])) <= width
        assert "p50" in lines[1], "the median goes last"
    assert max(map(len, histogram_lines(view.histogram[1], width))) <= width


def test_a_sweep_shows_its_stages_and_an_ab_both_sides_and_their_difference() -> None:
    stages = text_of(viewed(list(sweep_records((2, 8, 20), requests=60))))
    assert "8/s" in stages
    assert "Knee: " in stages
    both = text_of(viewed(ab_records(60)))
    assert "b − a, ms" in both
    assert "+1." in both
    assert both.count("input tokens") == 2


def test_a_histogram_has_every_value_once() -> None:
    bins = [Bin(0.0, 1.0, 3), Bin(1.0, 2.0, 0), Bin(2.0, 9.0, 1)]
    lines = histogram_lines(bins, 80)
    assert [line.split()[1] for line in lines] == ["3", "0", "1"]
    assert lines[0].count("■") == 3 * lines[2].count("■") == 30


@given(
    st.lists(st.floats(0.001, 1e6), min_size=1, max_size=200),
    st.sampled_from([0.0, 21.2, 9_168.0]),
    st.floats(0, 1),
)
@example([0.0, 0.01, 0.02, 0.03], 21.2, 1.0)
def test_a_histogram_has_every_value_and_no_bin_whose_ends_read_alike(
    values: list[float], base: float, spread: float
) -> None:
    """Four requests were eleven rows of “21.2–21.2”."""
    bins = histogram([base + value * spread for value in values])
    assert sum(each.count for each in bins) == len(values)
    assert len(bins) == 1 or all(digits(each.low) != digits(each.high) for each in bins)


def test_a_run_of_which_nothing_completed_has_no_empty_rows() -> None:
    failed = list(records(Load(requests=10, warmups=0)))
    for record in failed:
        record.failure, record.detail = "status", "404: no such model"
    text = text_of(viewed(failed))
    assert "Result: 10 of 10 requests FAILED" in text
    assert "10 status: 404: no such model" in text
    assert "TTFT" not in text


def test_a_table_without_columns_to_give_up_is_left_as_it_is() -> None:
    assert table_lines(Table("t", ("", "x"), [["a" * 90, "1"]]), 40)[2].startswith("  aaa")


# As a process


async def test_results_are_on_stdout_and_progress_is_not(start: Start, echo: Engine) -> None:
    process = await start("run", "--base-url", echo.url, "--num-prompts", "20", *LENIENT)
    output, error = await process.process.communicate()
    assert process.process.returncode == 0, error
    assert "Result: all 20 requests completed" in output.decode()
    assert rows(output.decode())["output tokens"][0] == "5.00"
    assert "written to" in error.decode()
    assert "written to" not in output.decode()


async def test_json_is_exactly_one_document_and_the_file_on_disk(start: Start, echo: Engine) -> None:
    process = await start("run", "--base-url", echo.url, "--num-prompts", "20", "--json", *LENIENT)
    output, error = await process.process.communicate()
    assert process.process.returncode == 0, error
    assert output.count(b"\n") == 1
    assert json.loads(output) == json.loads((process.folder() / "result.json").read_bytes())
    assert error == b"", "LENIENT has --quiet"


async def test_a_sweep_in_json_is_one_document_too(start: Start, echo: Engine) -> None:
    words = ("--rates", "40,80", "--stage-seconds", "0.3", "--num-prompts", "500", "--burstiness", "inf", "--json")
    process = await start("sweep", "--base-url", echo.url, *words, *LENIENT)
    output, error = await process.process.communicate()
    assert process.process.returncode == 0, error
    assert json.loads(output)["completed"] == 36
    others = [line for line in error.decode().splitlines() if not line.startswith("warning: ")]
    assert others == [], "no stage, no knee, no progress"


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> content of the files in the one folder in this one."""
    (run,) = folder.iterdir()
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def limited(blocks: int, *words: str, lenient: Sequence[str] = LENIENT) -> list[str]:
    """The command with files of at most so many KiB, as on a disk that is full. It writes no bytecode: Python 3.11
    keeps half of a file of it."""
    command = [sys.executable, "-B", "-m", "loadgen", *words, *lenient]
    return ["bash", "-c", f'ulimit -f {blocks} && PYTHONDONTWRITEBYTECODE=1 exec "$@"', "-", *command]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_full_disk_costs_files_and_no_figures(echo: Engine, tmp_path: Path, workers: str) -> None:
    words = ("run", "--base-url", echo.url, "--num-prompts", "300", "--max-concurrency", "8", "--workers", workers)
    process = await asyncio.create_subprocess_exec(
        *limited(16, *words, "--json", "--result-dir", str(tmp_path)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, error = await process.communicate()
    said = error.decode()
    assert "Traceback" not in said
    result: dict[str, Any] = json.loads(output)
    assert (process.returncode, result["completed"], result["total_output_tokens"]) == (1, 300, 1500)
    assert "could not write all of events.jsonl: File too large; it lacks " in said
    assert "could not write report.html: File too large" in said
    left = contents(tmp_path)
    assert "report.html" not in left, "half a page would look whole"
    assert all(json.loads(line) for line in left["events.jsonl"].splitlines()), "whole lines only"


async def said_on_a_full_disk(*words: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *words, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_repeats_on_a_full_disk_are_all_counted(echo: Engine, tmp_path: Path) -> None:
    words = ("--base-url", echo.url, "--num-prompts", "100", "--repeat", "2", "--result-dir", str(tmp_path))
    code, said = await said_on_a_full_disk(*limited(4, "run", *words))
    assert (code, "Traceback" in said) == (1, False), said
    assert "could not write result.json: File too large" in said
    assert "# 2 runs of the same load" in said
    assert "| median_ttft_ms " in said


async def test_a_full_disk_spoils_no_line_of_an_older_result_file(echo: Engine, tmp_path: Path) -> None:
    older = b'{"older": "%b"}' % (b"x" * 4000)
    (tmp_path / "all.jsonl").write_bytes(older)
    words = ("--base-url", echo.url, "--num-prompts", "20", "--append-result", "--result-filename", "all.jsonl")
    code, said = await said_on_a_full_disk(*limited(4, "run", *words, "--result-dir", str(tmp_path)))
    assert code == 1, said
    assert "could not write vLLM's result file: " in said
    assert "all.jsonl: File too large" in said
    assert (tmp_path / "all.jsonl").read_bytes() == older


async def test_a_quick_look_on_a_full_disk_promises_no_report(echo: Engine, tmp_path: Path) -> None:
    words = ("quick", echo.url, "--goodput", "e2el:0.001", "--result-dir", str(tmp_path))
    code, said = await said_on_a_full_disk(*limited(4, *words, lenient=()))
    assert (code, "Traceback" in said) == (1, False), said
    assert "could not write all of events.jsonl: File too large" in said
    assert "writes the whole report" not in said
    assert "One user alone waits" in said


async def test_a_run_by_duration_lets_requests_end_and_exits_0(start: Start) -> None:
    async with Engine(timed_script(ttft=0.05, itl=0.6, tokens=2)) as engine:
        words = (
            "run",
            "--base-url",
            engine.url,
            "--request-rate",
            "20",
            "--num-prompts",
            "1000",
            "--max-seconds",
            "1",
        )
        process = await start(*words, *LENIENT)
        code, said = await process.wait()
        assert (code, "cancelled" in said) == (0, False), said
        assert {record.failure for record in process.records()} == {None}
    async with Engine(hanging_after(5)) as engine:  # whatever the machine's pace, some end and some do not
        cut = await start(
            *("run", "--base-url", engine.url, "--request-rate", "20", "--num-prompts", "1000"),
            *("--max-seconds", "5", "--grace-seconds", "0.1", *LENIENT),
        )
        code, said = await cut.wait()
        assert code == 0, said
        assert "had not ended when the run did" in said
        assert "cancelled" in {record.failure for record in cut.records()}


def hanging_after(count: int) -> Script:
    """Answers so many requests at once, and the others never."""
    script, seen = echo_script(tokens=5), 0

    async def answer(turn: Turn) -> None:
        nonlocal seen
        seen += 1
        await (script(turn) if seen <= count else asyncio.Event().wait())

    return answer


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (("--num-prompts", "24", "--request-timeout", "5"), 1),
        (("--num-prompts", "1000", "--grace-seconds", "0.2", "--max-seconds"), 0),
    ],
)
async def test_the_time_for_which_a_server_hung_is_in_the_rates_and_its_requests_are_in_flight_once(
    start: Start, end: tuple[str, ...], code: int
) -> None:
    """The last bytes came after some milliseconds: by them 20 responses in a second were a thousand a second."""
    for seconds in ("0.8", "5", "20"):  # a slow machine needs more of them until all four hang
        words = (*end, seconds) if end[-1] == "--max-seconds" else end
        async with Engine(hanging_after(20)) as engine:
            process = await start("run", "--base-url", engine.url, "--max-concurrency", "4", *words, *LENIENT)
            exit_code, said = await process.wait()
        if engine.generations >= 24:
            break
    assert exit_code == code, said
    result = json.loads((process.folder() / "result.json").read_bytes())
    assert result["completed"] == 20
    assert result["duration"] > 0.9
    assert result["request_throughput"] == pytest.approx(20 / result["duration"])
    assert result["max_concurrent_requests"] == 4


async def test_requests_that_time_out_one_after_another_are_in_flight_one_at_a_time(start: Start) -> None:
    async with Engine(hanging_after(0)) as engine:
        words = ("--max-concurrency", "2", "--num-prompts", "8", "--request-timeout", "0.2")
        process = await start("run", "--base-url", engine.url, *words, *LENIENT)
        exit_code, said = await process.wait()
    assert exit_code == 1, said
    result = json.loads((process.folder() / "result.json").read_bytes())
    assert (result["failed"], result["max_concurrent_requests"]) == (8, 2)
    assert result["duration"] >= 0.8

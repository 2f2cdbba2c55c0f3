"""`run --repeat K`: folders, seeds, the interval over the runs, the exit code."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from statistics import fmean, stdev

import pytest

from loadgen.cli.compare import main_compare
from loadgen.cli.runs.repeat import Once, repeat, worst
from loadgen.report.runs.repeats import T_95, repeats_json, repeats_table, spread_of, spreads_of
from loadgen.store import read_run, write_run
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.loadgen.cli.test_bad_input import LENIENT, ROOT
from tests.loadgen.kit.program import program
from tests.loadgen.kit.sampling import run_of


def test_the_interval_is_students_over_the_runs() -> None:
    values = [10.0, 12.0, 11.0, 15.0]
    spread = spread_of("x", values)
    half = 3.182 * stdev(values) / 2
    assert (spread.mean, spread.low, spread.high) == (fmean(values), fmean(values) - half, fmean(values) + half)
    assert (spread.least, spread.most, spread.runs) == (10.0, 15.0, 4)
    assert spread_of("x", [1.0] * 3).high == 1.0
    assert spread_of("x", [0.0, 1.0] * 40).high - 0.5 == pytest.approx(T_95[-1] * stdev([0.0, 1.0] * 40) / 80**0.5)


def test_only_figures_that_every_run_has_are_shown() -> None:
    results: list[dict[str, float | None]] = [
        {"median_ttft_ms": 1.0, "p99_ttft_ms": 2.0},
        {"median_ttft_ms": 3.0, "p99_ttft_ms": None},
    ]
    assert [spread.metric for spread in spreads_of(results)] == ["median_ttft_ms"]
    assert spreads_of(results[:1]) == []
    assert "| median_ttft_ms" in "\n".join(repeats_table(spreads_of(results)))
    assert repeats_table([])


def test_the_exit_code_is_that_of_the_worst_run() -> None:
    assert [worst(codes) for codes in ([0, 0], [0, 3], [3, 1], [1, 130], [])] == [0, 3, 1, 130, 0]


async def started(*words: str) -> tuple[int, str]:
    """Exit code and output of `python -m loadgen`."""
    process = await asyncio.create_subprocess_exec(
        *program(*words),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_each_run_has_its_folder_and_its_own_seed(tmp_path: Path) -> None:
    async with Engine(echo_script(tokens=4)) as engine:
        await started(
            *(
                "run",
                "--result-dir",
                str(tmp_path / "out"),
                "--base-url",
                engine.url,
                "--model",
                "m1",
                *LENIENT,
                "--num-prompts",
                "6",
                "--repeat",
                "2",
            ),
            *("--unique", "--seed", "5", "--result-filename", "all.jsonl", "--append-result"),
        )
        prompts = [json.dumps(turn.json()["messages"]) for turn in engine.requests if turn.method == "POST"]
    assert len(prompts) == len(set(prompts)) == 12
    assert results(tmp_path / "out" / "all.jsonl") == 2
    folder = repeats_folder(tmp_path / "out")
    runs = [read_run(folder / name) for name in ("run-1", "run-2")]
    assert [run.seed for run in runs] == [5, 6]
    assert runs[0].config["unique_salt"] != runs[1].config["unique_salt"]
    document = json.loads((folder / "repeats.json").read_text())
    assert document["runs"] == ["run-1", "run-2"]
    figure = next(one for one in document["figures"] if one["metric"] == "median_ttft_ms")
    assert figure["low"] < figure["mean"] < figure["high"]


def results(path: Path) -> int:
    return len(path.read_text().splitlines())


def repeats_folder(out: Path) -> Path:
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    assert folder.name.endswith("-repeats")
    return folder


async def test_results_that_would_overwrite_each_other_are_refused() -> None:
    async with Engine(echo_script()) as engine:
        code, said = await started("run", "--base-url", engine.url, "--repeat", "2", "--save-result")
        assert engine.requests == []
    assert (code, "give --append-result" in said) == (2, True)


def repeated(folder: Path, *medians: float) -> Path:
    """As `run --repeat` leaves it."""
    (folder / "run-1").mkdir(parents=True)
    write_run(folder / "run-1", run_of())
    spreads = spreads_of([{"median_ttft_ms": median, "request_throughput": 5.0} for median in medians])
    (folder / "repeats.json").write_bytes(repeats_json(spreads, ["run-1"]))
    return folder


def test_repeats_are_compared_by_what_differs_from_run_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = repeated(tmp_path / "a", 100.0, 101.0, 99.0, 100.5)
    slower = repeated(tmp_path / "b", 120.0, 121.0, 119.0, 120.5)
    noisy = repeated(tmp_path / "c", 120.0, 180.0, 60.0, 130.0)
    rule = ("--fail-if", "median_ttft_ms>+10%", "--certain")
    assert main_compare([str(a), str(slower), *rule]) == 1
    said = capsys.readouterr().out
    assert "median ttft 20.0 ms higher (95 %: " in said
    assert "no intervals" not in said
    assert main_compare([str(a), str(noisy), *rule]) == 0
    assert "no significant difference" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b'{"figures": [{"metric": 1}]}', b"\xff"])
def test_a_broken_file_of_repeats_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = repeated(tmp_path / "a", 1.0, 2.0)
    (a / "repeats.json").write_bytes(content)
    assert main_compare([str(a), str(a)]) == 2
    assert "repeats.json: " in capsys.readouterr().err


async def test_a_result_file_that_cannot_be_written_is_said_and_exits_1(tmp_path: Path) -> None:
    words = ("--save-result", "--result-filename", "nowhere/x.json/", "--result-dir", str(tmp_path))
    (tmp_path / "nowhere").write_text("")
    async with Engine(echo_script(tokens=2)) as engine:
        code, said = await started(
            *("run", "--base-url", engine.url, "--model", "m1", *LENIENT, "--num-prompts", "2", *words)
        )
    assert code == 1
    assert "could not write vLLM's result file: " in said
    assert "Traceback" not in said


def figures(median: float) -> dict[str, float]:
    return {"median_ttft_ms": median}


async def test_a_run_that_was_interrupted_is_in_no_figure_of_the_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = iter([Once(0, figures(1.0)), Once(1, figures(3.0)), Once(130, figures(900.0))])

    async def once(folder: Path) -> Once:
        return next(ends)

    args = argparse.Namespace(repeat=5, seed=0, unique_salt=None, json=False, quiet=False)
    assert await repeat(args, tmp_path, once) == 130
    document = json.loads((tmp_path / "repeats.json").read_text())
    assert document["runs"] == ["run-1", "run-2"]
    assert [(one["least"], one["most"]) for one in document["figures"]] == [(1.0, 3.0)]
    assert "# 2 runs of the same load" in capsys.readouterr().out


async def test_in_json_there_is_a_line_for_each_repeat_and_nothing_else(tmp_path: Path) -> None:
    async with Engine(echo_script(tokens=4)) as engine:
        words = ("--base-url", engine.url, "--model", "m1", *LENIENT, "--num-prompts", "6", "--repeat", "2")
        code, said = await started("run", "--result-dir", str(tmp_path), *words, "--json", "--quiet")
    assert code == 0, said
    assert [json.loads(line)["completed"] for line in said.splitlines()] == [6, 6]

"""The parts of the GPU benchmark without a process: model, plan, figures, report, words about a failure."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ops.bench.gpu import measure as measuring
from ops.bench.gpu.__main__ import layout, parsed
from ops.bench.gpu.engine import Program, Unusable, check_port, find_router, find_vllm, last_lines, why
from ops.bench.gpu.measure import EngineEnded, Load, Point, Row, Subject, measure, steady
from ops.bench.gpu.model import SHAPES, SPECIAL, tokenizer, write_model
from ops.bench.gpu.plan import DUPLICATES, STREAMS, Cell, Clock, cells, important_first
from ops.bench.gpu.report import Report, added, markdown, picture
from tests.kit.missing import module


def stub(folder: Path, *, version: str = "9.9", otherwise: str = "exit 1") -> Path:
    """An environment whose Python says a version and runs nothing."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    known = f'echo "{version}"' if version else "exit 1"
    python.write_text(f'#!/bin/sh\ncase "$1" in -c) {known};; *) {otherwise};; esac\n')
    python.chmod(0o755)
    return folder


# The model


@pytest.mark.parametrize("shape", SHAPES)
def test_the_tokenizer_has_a_text_for_every_id_of_the_model(shape: str, tmp_path: Path) -> None:
    write_model(tmp_path / "model", shape, ["time", "people", "Größe"])
    config, made, settings = (
        json.loads((tmp_path / "model" / f"{name}.json").read_text())
        for name in ("config", "tokenizer", "tokenizer_config")
    )
    vocabulary = made["model"]["vocab"]
    assert sorted(vocabulary.values()) == [*range(config["vocab_size"])]
    assert [vocabulary[name] for name in SPECIAL] == [config["bos_token_id"], config["eos_token_id"]]
    assert (settings["bos_token"], settings["eos_token"]) == SPECIAL
    assert config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]


def test_a_word_is_one_token_with_and_without_its_space() -> None:
    made = tokenizer(["time", "tip"], 400)
    merges = [tuple(merge) for merge in made["model"]["merges"]]
    assert {"time", "Ġtime", "tip", "Ġtip"} <= made["model"]["vocab"].keys()
    assert ("tim", "e") in merges
    assert len(set(merges)) == len(merges)
    assert all(first + second in made["model"]["vocab"] for first, second in merges)


def test_more_words_than_there_is_room_for_are_left_out() -> None:
    vocabulary = tokenizer([f"word{n}" for n in range(1000)], 300)["model"]["vocab"]
    assert sorted(vocabulary.values()) == [*range(300)]


# The plan


def test_the_middle_and_the_ends_come_first() -> None:
    assert important_first([512, 1, 8, 32, 128]) == [32, 1, 512, 8, 128]
    assert important_first([4]) == [4]
    assert important_first([]) == []


def test_a_round_is_complete_before_the_next_and_begins_with_another_subject() -> None:
    plan = cells([1, 8, 32], [0.0, 0.5], ["direct", "gateway", "router"], ["direct", "gateway"], 2)
    assert [(cell.kind, cell.value) for cell in plan if cell.round == 0] == [
        (STREAMS, 8), (STREAMS, 1), (DUPLICATES, 0.5), (STREAMS, 32), (DUPLICATES, 0.0),
    ]  # fmt: skip
    assert [cell.round for cell in plan] == [0] * 5 + [1] * 5
    assert plan[5].subjects == ("gateway", "router", "direct")
    assert plan[7].subjects == ("direct", "gateway")


def clock(ends: float, overhead: float = 2.0) -> Clock:
    rows = [Cell(STREAMS, value, 0, ("a", "b")) for value in (8.0, 1.0, 512.0)]
    return Clock(rows, row_seconds=8.0, ends=ends, overhead=overhead)


def test_what_does_not_fit_is_dropped_the_least_important_first() -> None:
    time = clock(ends=45.0)
    first, second = time.next(0.0), time.next(20.0)
    assert (first and first.value, second and second.value) == (8.0, 1.0)
    assert time.next(40.0) is None
    assert [cell.name for cell in time.dropped] == ["512 streams, round 1"]


def test_rows_that_take_longer_than_expected_leave_time_for_fewer() -> None:
    time = clock(ends=60.0)
    assert time.next(0.0)
    time.took(20.0)
    time.took(9.0)
    assert time.expected(Cell(STREAMS, 1.0, 0, ("a", "b"))) == 2 * (8.0 + 12.0)
    assert time.next(29.0) is None
    assert len(time.dropped) == 2


def test_what_is_left_when_the_engine_ends_is_dropped_too() -> None:
    time = clock(ends=1000.0)
    time.next(0.0)
    time.stop()
    assert [cell.value for cell in time.dropped] == [1.0, 512.0]
    assert time.next(0.0) is None


# Figures


def test_the_pace_is_that_of_the_time_in_which_nearly_all_streams_generate() -> None:
    points = [
        Point(0.0, 0.0, 0.0, 0.0, 0.0),
        Point(1.0, 100.0, 9.0, 1.0, 0.1),
        Point(2.0, 300.0, 10.0, 1.5, 0.3),
        Point(3.0, 500.0, 10.0, 2.0, 0.5),
        Point(4.0, 510.0, 2.0, 2.0, 0.5),
    ]
    assert steady(points, 10) == pytest.approx((200.0, 2500.0, 1000.0))
    assert steady(points[:2], 10) is None
    assert steady([points[1], points[1]], 10) is None
    uncounted = [Point(point.at, point.generated, point.running, 0.0, 0.0) for point in points]
    assert steady(uncounted, 10) == (200.0, None, None)


RESULT: dict[str, Any] = {
    "completed": 4, "failed": 1, "total_output_tokens": 32, "output_throughput": 8.0, "median_ttft_ms": 10.0,
    "p99_ttft_ms": None, "median_tpot_ms": 5.0, "p99_itl_ms": None,
    "loadgen": {"summary": {"whole": {"errors": {}}}, "run": {"invalid": [], "lag": {"cpu": 0.1}}},
}  # fmt: skip
CELL = Cell(STREAMS, 2.0, 0, ("direct", "gateway"))
LOAD = Load(8, 1.0, 4, 24, "short-chat")


def ended_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Counters that grow, and a load generator that returns `result` or raises it."""
    state: dict[str, Any] = {"result": RESULT, "tokens": 0.0, "absent": ()}

    def counters(_: str) -> dict[str, float]:
        state["tokens"] += 16.0
        known = [name for name in measuring.COUNTERS if name not in state["absent"]]
        return dict.fromkeys(known, state["tokens"]) | {"running": 0.0}

    def loadgen(*arguments: str, folder: Path, seconds: float) -> Any:
        if isinstance(state["result"], Exception):
            raise state["result"]
        return state["result"]

    monkeypatch.setattr(measuring, "counters", counters)
    monkeypatch.setattr(measuring, "loadgen", loadgen)
    return state


def subject(name: str, pid: int | None, folder: Path) -> Subject:
    log = folder / f"{name}.log"
    log.write_text("one\n\nlast words\n")
    return Subject(name, "http://127.0.0.1:1", pid, log)


def test_a_row_has_the_client_s_figures_and_the_engine_s_work(fake: dict[str, Any], tmp_path: Path) -> None:
    engine = subject("vLLM", os.getpid(), tmp_path)
    row = measure(CELL, subject("direct", None, tmp_path), engine, LOAD, tmp_path)
    assert (row.error, row.completed, row.failed, row.ttft_p50) == (None, 4, 1, 10.0)
    assert row.work == dict.fromkeys(("requests", "prompt", "cached", "generated"), 16.0)


def test_counters_that_an_engine_lacks_are_named_and_never_taken_for_savings(
    fake: dict[str, Any], tmp_path: Path
) -> None:
    engine, direct = subject("vLLM", os.getpid(), tmp_path), subject("direct", None, tmp_path)
    fake["absent"] = ("generated",)
    row = measure(CELL, direct, engine, LOAD, tmp_path)
    assert row.error == "the engine's /metrics has no vllm:generation_tokens_total"
    assert row.work == {}
    fake["absent"] = ("cached",)  # without prefix caching
    assert measure(CELL, direct, engine, LOAD, tmp_path).work["cached"] == 0.0


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (RuntimeError("loadgen exited 2: no\nresponse"), "loadgen exited 2: no response"),
        (
            RESULT
            | {"completed": 0, "loadgen": RESULT["loadgen"] | {"summary": {"whole": {"errors": {"http": 7}}}}},
            "no request was completed: 7 × http",
        ),
    ],
)
def test_a_subject_that_fails_is_a_row_that_says_so(
    fake: dict[str, Any], tmp_path: Path, result: Any, words: str
) -> None:
    fake["result"] = result
    engine = subject("vLLM", os.getpid(), tmp_path)
    assert measure(CELL, subject("gateway", os.getpid(), tmp_path), engine, LOAD, tmp_path).error == words


def test_a_subject_whose_process_ended_is_named_with_its_last_words(fake: dict[str, Any], tmp_path: Path) -> None:
    engine = subject("vLLM", os.getpid(), tmp_path)
    row = measure(CELL, subject("gateway", ended_process(), tmp_path), engine, LOAD, tmp_path)
    assert row.error == "the process of gateway ended; its log ends with: one\nlast words"


def test_without_the_engine_nothing_more_is_measured(fake: dict[str, Any], tmp_path: Path) -> None:
    engine = subject("vLLM", ended_process(), tmp_path)
    with pytest.raises(EngineEnded, match="the process of vLLM ended"):
        measure(CELL, subject("direct", None, tmp_path), engine, LOAD, tmp_path)


def test_a_load_of_duplicates_is_a_fixed_number_of_requests() -> None:
    assert "1000000" in LOAD.arguments(CELL, "http://x")
    words = LOAD.arguments(Cell(DUPLICATES, 0.5, 1, ("direct",)), "http://x")
    assert words[words.index("--num-prompts") + 1] == "24"
    assert words[words.index("--max-concurrency") + 1] == "4"
    assert words[words.index("--duplicates") + 1] == "0.5"


# What is said of a failure


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "too little free memory"),
        ("ValueError: Free memory on device cuda:0 (1/139 GiB) is less", "too little free memory"),
        ("RuntimeError: Failed to infer device type, please set", "vLLM found no GPU"),
        ("[Errno 98] error while attempting to bind: address already in use", "its port is taken"),
        ("api_server.py: error: unrecognized arguments: --x", "does not accept one of its flags"),
    ],
)
def test_the_cause_is_a_sentence(log: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text("\n".join(["INFO starting", log, *["INFO later"] * 50]))
    said = why(path)
    assert said is not None
    assert words in said


def test_of_a_long_log_the_last_lines_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff\xfe" + b"x" * 1_000_000 + b"\n" + b"".join(b"line %d\n\n" % n for n in range(100)))
    assert last_lines(path, 3) == "line 97\nline 98\nline 99"
    assert last_lines(tmp_path / "none") == "(no output)"
    assert why(path) is None


def test_vllm_is_found_as_an_environment_a_python_and_a_script(tmp_path: Path) -> None:
    home = stub(tmp_path / "venv")
    script = home / "bin" / "vllm"
    script.write_text(f"#!{home / 'bin' / 'python'}\n")
    for path in (home, home / "bin" / "python", script):
        assert find_vllm(path) == Program(home / "bin" / "python", "9.9")


def test_a_missing_vllm_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unusable, match="there is no such file"):
        find_vllm(tmp_path / "none")
    with pytest.raises(Unusable, match="is no script, Python or environment of vLLM"):
        find_vllm(stub(tmp_path / "other", version=""))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unusable, match="name it by --vllm PATH"):
        find_vllm(None)


def test_the_router_is_found_below_home_or_is_not_present(tmp_path: Path) -> None:
    vllm = Program(stub(tmp_path / "vllm", version="") / "bin" / "python", "1")
    assert find_router(None, tmp_path, vllm) is None
    peers = stub(tmp_path / "vllm-router" / "venv", version="0.1")
    assert find_router(None, tmp_path, vllm) == Program(peers / "bin" / "python", "0.1")
    with pytest.raises(Unusable, match="--router"):
        find_router(tmp_path / "none", tmp_path, vllm)


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Unusable, match=r"port \d+ of 127.0.0.1 is not free \(Address already in use\)"):
            check_port(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--streams", "0"], "numbers from 1 to 4096"),
        (["--streams", "1.5"], "whole numbers of streams"),
        (["--streams", "1,,2"], "numbers from 1 to 4096"),
        (["--duplicates", "1"], "numbers from 0 to 0.95"),
        (["--duplicates", "nan"], "numbers from 0 to 0.95"),
        (["--tokens", "2.5"], "a whole number from 2 to 4096"),
        (["--rounds", "0"], "numbers from 1 to 9"),
        (["--budget", "20", "--seconds", "60"], "too short for one row"),
        (["--out", "/dev/null/x"], "Not a directory"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(flags)
    said = " ".join(capsys.readouterr().err.split())
    assert flags[0] in said
    assert words in said


def test_in_small_only_what_is_not_given_is_smaller(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    assert (parsed(out).shape, parsed(out).budget) == ("8b", 480.0)
    small = parsed(["--small", "--streams", "3", *out])
    assert (small.shape, small.streams, small.tokens) == ("tiny", [3.0], 8)


@pytest.mark.parametrize(("count", "sizes"), [(1, (1, 1, 1)), (2, (2, 2, 2)), (4, (2, 1, 1)), (16, (13, 1, 2))])
def test_the_gateway_has_a_cpu_of_its_own_where_there_are_enough(count: int, sizes: tuple[int, ...]) -> None:
    parts = layout([*range(count)])
    assert tuple(map(len, parts)) == sizes
    if count >= 4:
        assert not (parts[0] & parts[1] | parts[1] & parts[2] | parts[0] & parts[2])


# The report


def row(name: str, round_: int = 0, **more: Any) -> Row:
    plain: dict[str, Any] = {"kind": STREAMS, "value": 8.0, "ttft_p50": 20.0, "tpot_p50": 5.0}
    return Row(subject=name, round=round_, **(plain | more))


def report(*rows: Row, **more: Any) -> Report:
    plain: dict[str, Any] = {
        "command": "python -m ops.bench.gpu", "machine": "A machine", "gpu": "NVIDIA H200", "vllm": "0.32.0",
        "model": "8b", "subjects": {"direct": "vLLM", "gateway": "0.1.0"}, "missing": [], "load": "A load.",
        "budget": 480.0, "took": 300.0, "ready": 90.0, "dropped": [],
    }  # fmt: skip
    return Report(rows=[*rows], **(plain | more))


def test_a_difference_is_a_finding_where_all_rounds_agree_in_its_sign() -> None:
    direct = [row("direct", n, ttft_p50=value) for n, value in enumerate((10.0, 20.0, 30.0))]
    slower = [row("gateway", n, ttft_p50=value) for n, value in enumerate((11.0, 22.0, 33.0))]
    either = [row("gateway", n, ttft_p50=value) for n, value in enumerate((9.0, 22.0, 33.0))]
    assert added(slower, direct, "ttft_p50", 1) == "2.0 (1.0 to 3.0)"
    assert added(either, direct, "ttft_p50", 1) == "2.0 (-1.0 to 3.0), no finding"
    assert added(slower[:1], direct, "ttft_p50", 1) == "1.0, no finding"
    assert added(slower, [], "ttft_p50", 1) == "–"


def test_the_report_says_what_failed_what_is_missing_and_what_was_dropped() -> None:
    text = markdown(
        report(
            row("direct"), row("gateway", ttft_p50=None, tpot_p50=None, error="the process of gateway ended | so"),
            row("direct", 1, invalid=["CPU 95 %"], failed=3),
            missing=["vllm-router: not present"], dropped=["512 streams, round 2"], ended="interrupted",
        )
    )  # fmt: skip
    assert "# vLLM 0.32.0 on NVIDIA H200" in text
    assert "FAILED: the process of gateway ended / so |" in text
    assert "3 requests failed; the client is inexact: CPU 95 % |" in text
    assert "- not measured: vllm-router: not present" in text
    assert "- **ended early**: interrupted" in text
    assert "- no time for: 512 streams, round 2" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_saved_is_what_was_delivered_and_not_generated() -> None:
    work = {"requests": 12.0, "prompt": 100.0, "cached": 20.0, "generated": 96.0}
    text = markdown(report(row("gateway", kind=DUPLICATES, value=0.5, completed=24, delivered=192, work=work)))
    assert "| 50% | gateway | 24 | 12 | 100 | 20 | 96 | 192 | 50.0 % | 20.0 | sound |" in text


def test_a_run_in_which_nothing_was_measured_is_a_report_too() -> None:
    text = markdown(report(gpu="", ended="vLLM ended at its start"))
    assert "Nothing was measured." in text
    assert "on a CPU" in text
    assert picture(report()) is None


def test_the_plot_has_each_way() -> None:
    module("matplotlib", "plots")
    drawn = picture(report(row("direct"), row("gateway"), row("direct", value=32.0, ttft_p50=40.0)))
    assert drawn is not None
    for word in ("direct", "gateway", "TTFT p50, ms", "time per token p50, ms", "32"):
        assert word in drawn.decode()

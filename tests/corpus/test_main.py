"""The program as it is called: data, tables, and flags refused with what would be right."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from corpus.__main__ import main
from corpus.presets import PRESETS


def test_compose_writes_requests_to_a_file_and_the_table_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w.jsonl"
    flags = ["--num-prompts", "200", "--duplicates", "0.3", "--zipf", "1.1", "--request-rate", "4", "--seed", "5"]
    assert main(["compose", *flags, "--input-len", "64", "--out", str(out)]) == 0
    requests = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({json.dumps(r["fields"]) for r in requests}) == 140
    assert set(requests[0]) == {"id", "endpoint", "at", "input_tokens", "output_tokens", "fields"}
    table = capsys.readouterr().out
    assert "| duplicates      | 30.0% |         – |    30.0% | +0.0 pt |" in table
    assert "| input p50       |    64 |         – |       64 |     +0% |" in table
    again = tmp_path / "again.jsonl"
    assert main(["compose", *flags, "--input-len", "64", "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_composes_and_shows_what_is_published(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compose", "--preset", name, "--num-prompts", "30", "--dry"]) == 0
    table = capsys.readouterr().out
    assert table.startswith(f"{name}: ")
    assert f"{PRESETS[name].published['input p99']:,.0f}" in table


def test_data_on_stdout_leaves_the_table_to_stderr(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["compose", "--num-prompts", "3", "--corpus-set", "code"]) == 0
    got = capsysbinary.readouterr()
    assert [json.loads(line)["endpoint"] for line in got.out.splitlines()] == ["chat"] * 3
    assert b"achieved" in got.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num-prompts", "0"], "--num-prompts must be 1 to"),
        (["--duplicates", "1.5"], "--duplicates must be 0 to 0.999"),
        (["--duplicates", "nan"], "--duplicates must be"),
        (["--request-rate", "0"], "--request-rate must be"),
        (["--burstiness", "-1"], "--burstiness must be"),
        (["--input-len", "long"], "lognormal:MU,SIGMA"),
        (["--corpus-set", "poems"], "there are short-chat"),
        (["--corpus-set", "embeddings"], "is for embeddings, not for chat"),
        (["--corpus-set", "code", "--input-len", "9"], "leave out --input-len"),
        (["--preset", "mooncake-synthetic", "--prefix-share", "0.5"], "shares prefixes by blocks"),
        (["--out", "no/such/folder/w.jsonl"], "no/such/folder/w.jsonl: No such file"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compose", *flags]) == 2
    got = capsys.readouterr()
    assert words in got.err
    assert got.out == ""


def test_list_stats_and_verify_speak_of_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == main(["list"]) == main(["stats"]) == 0
    said = capsys.readouterr().out
    assert said.count("shared-system") == 2
    assert "mooncake-synthetic" in said


def test_calibrate_without_a_server_says_what_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--url", "http://127.0.0.1:1"]) == 2
    assert "python -m proxy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "corpus: the following arguments are required: COMMAND; python -m corpus --help lists them\n"),
        (["compose", "--sed", "1"], "corpus compose: unknown flag --sed; did you mean --seed?\n"),
        (["compose", "--xyzzy=1"], "corpus compose: unknown flag --xyzzy; see python -m corpus compose --help\n"),
        (["stats", "code"], "corpus stats: unexpected argument 'code': values are given as --flag VALUE\n"),
        (["documents", "--count", "x"], "corpus documents: --count: invalid int value: 'x'\n"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert (ended.value.code, capsys.readouterr().err) == (2, said)


def test_a_command_that_is_none_is_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["lst"])
    said = capsys.readouterr().err
    assert said.startswith("corpus: COMMAND: invalid choice: 'lst'")
    assert "compose" in said
    assert said.count("\n") == 1


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"corpus {version('streaming-gateway')}\n")

"""The command line: errors of one line that name the command and the flag, and a short and a complete help."""

from __future__ import annotations

import re
import subprocess

import pytest

from loadgen.cli.main import COMMANDS, SHELLS, flags_of_command, main
from loadgen.cli.parser import MEANT, SHORT


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[-1]) == ("", 1, "\n")
    return err[:-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --request-rate fast", "loadgen run: --request-rate: 'fast' is not a number"),
        ("run --num-prompts 1.5", "loadgen run: --num-prompts: '1.5' is not a whole number"),
        ("run --zipf nan", "loadgen run: --zipf: nan is out of range; give a number at least -inf"),
        ("run --model", "loadgen run: --model: expected one argument"),
        ("ab --a http://x", "loadgen ab: the following arguments are required: --b"),
        ("compare x", "loadgen compare: the following arguments are required: B"),
        ("sweep --request-rate 1", "loadgen sweep: unknown flag --request-rate; did you mean --start-rate?"),
        ("run --qps=3", "loadgen run: unknown flag --qps; did you mean --request-rate?"),
        ("run -n 3", "loadgen run: unknown flag -n; did you mean --num-prompts?"),
        ("run --num-promts 3", "loadgen run: unknown flag --num-promts; did you mean --num-prompts?"),
        ("run --rates 1,2", "loadgen run: --rates is a flag of `sweep` only; "),
        ("run --xyzzy", "loadgen run: unknown flag --xyzzy; python -m loadgen run --help lists the flags"),
        ("run words", "loadgen run: unexpected argument 'words'; python -m loadgen run --help lists the flags"),
        (
            "rnu",
            "loadgen: COMMAND: 'rnu' is not one of run, ab, sweep, find, quick, calibrate, report, compare, "
            "merge, export, vllm-bench-serve; did you mean run?",
        ),
        ("run --backend opnai", "openai, vllm, openai-embeddings; did you mean openai?"),
        ("sweep --workers 2", "loadgen sweep: --workers is for `run`: "),
        ("--print-completion fish", "loadgen: --print-completion: 'fish' is not one of bash, zsh, tcsh"),
        ("", f"loadgen: a command is missing; give one of {', '.join(COMMANDS)}"),
    ],
)
def test_wrong_usage_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *words.split())


def test_a_long_or_odd_word_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "run", "--" + "x" * 100_000)
    refused(capsys, "run", "--a\nb")
    refused(capsys, "run", "--seed", "1\n2")
    refused(capsys, "a\nb")


def flags(text: str) -> set[str]:
    return set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.MULTILINE))


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.short])
def test_the_short_help_fits_a_screen_and_the_other_has_every_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit, match="0"):
            main([command, flag])
        shown[flag] = capsys.readouterr().out
    assert "--help-all" in shown["--help"].splitlines()[-1]
    assert len(flags(shown["--help"])) < 25
    assert flags(shown["--help-all"]) >= flags_of(command) - {"--workers"}  # refused, where it is not shown


def flags_of(command: str) -> set[str]:
    return set(flags_of_command(command)) - {"--help"}


def test_each_name_of_the_short_help_and_of_the_suggestions_is_a_flag() -> None:
    known = {flag for command in COMMANDS for flag in flags_of(command)}
    assert {f"--{name.replace('_', '-')}" for name in SHORT} <= known | {"--help", "--help-all"}
    assert {flag for flags in MEANT.values() for flag in flags} <= known


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert re.fullmatch(r"loadgen \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_and_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert "gateway-load" in script
    assert all(word in script for word in (*COMMANDS, "num-prompts", "fail-if"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_shows_a_list_of_python(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "['" not in capsys.readouterr().out

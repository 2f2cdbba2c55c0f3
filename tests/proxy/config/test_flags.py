"""The command line: what help shows, the version, completion, and what programs are called."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from proxy import __version__
from proxy.config.flags import program_name
from proxy.config.loader import load
from proxy.config.settings import options

Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    monkeypatch.setenv("COLUMNS", "80")

    def show(*argv: str, prog: str = "python -m proxy") -> str:
        with pytest.raises(SystemExit) as ended:
            load(argv, {}, prog=prog)
        assert ended.value.code == 0
        return capsys.readouterr().out

    return show


def test_the_short_help_has_one_line_for_each_of_few_settings(shown: Shown) -> None:
    lines = shown("--help").splitlines()
    assert max(map(len, lines)) <= 80
    flags = [line.split()[0] for line in lines if line.startswith("  -")]
    known = {option.flag for option in options()}
    assert 12 <= len(known.intersection(flags)) <= 16
    assert {"--backend", "--redis", "--api-keys-file", "--max-inflight", "--config", "--help-all"} <= {*flags}
    assert len([line for line in lines if line.startswith("      ")]) == 0, "a flag with more than one line"
    assert any("--queue-timeout SECONDS" in line and line.endswith("[300s]") for line in lines)
    assert any(line.startswith("Admission and queue:") for line in lines)


def test_all_help_has_every_setting_in_its_group(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no word is broken
    text = shown("--help-all")
    words = " ".join(text.split())
    for option in options():
        assert f"{option.help} [{option.env[0]}, {option.shown_default}]" in words
        assert text.index(f"\n{option.group}:\n") < text.index(f"\n  {option.flag}")
    assert "500ms, 10s, 2m, 1h" in words
    assert "64KiB, 16MiB, 2GiB" in words
    assert "1_000_000, 1e6" in words


def test_help_may_follow_wrong_settings(shown: Shown) -> None:
    assert shown("--port", "x", "--help") == shown("-h")


def test_the_version_is_the_package_s(shown: Shown) -> None:
    assert shown("--version") == f"streaming-gateway {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_completes_every_flag(shown: Shown, shell: str) -> None:
    script = shown("--print-completion", shell)
    assert "streaming-gateway" in script
    missing = [option.flag for option in options() if option.flag.removeprefix("--") not in script]
    assert missing == []


def test_bash_accepts_its_completion_and_completes(shown: Shown) -> None:
    script = shown("--print-completion", "bash")

    def completed(*words: str) -> list[str]:
        line = f"COMP_WORDS=(streaming-gateway {' '.join(words)}); COMP_CWORD={len(words)}"
        ask = f"{script}\n{line}; _shtab_streaming_gateway; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("--queue-t") == ["--queue-timeout"]
    assert completed("--share", "a") == ["auto", "all"]


@pytest.mark.parametrize(
    ("argv0", "name"),
    [
        ("/usr/lib/proxy/__main__.py", "python -m proxy"),
        ("/venv/bin/streaming-gateway", "streaming-gateway"),
        ("-m", "python -m proxy"),
        ("", "python -m proxy"),
    ],
)
def test_a_program_is_called_as_it_was_started(shown: Shown, argv0: str, name: str) -> None:
    assert program_name(argv0, "proxy") == name
    for flag in ("--help", "--help-all"):
        assert shown(flag, prog=name).startswith(f"usage: {name} [")


def imported(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["proxy.keys", "proxy.probe", "proxy.__main__"])
def test_the_small_commands_import_the_settings_and_little_else(module: str) -> None:
    """By count: times depend on the machine."""
    before = imported("")
    added = imported(f"import {module}") - before
    rooms = {name for name in added if name.startswith("proxy.") and name.count(".") == 1}
    assert rooms <= {"proxy.config", "proxy.errors", "proxy.terminal", module}
    assert added.isdisjoint({"asyncio", "msgspec", "aiohttp", "redis", "shtab", "uvloop"})
    assert len(added) < 150


def test_a_start_of_the_gateway_does_not_import_the_completion() -> None:
    assert "shtab" not in imported("import proxy.program; from proxy.config import load; load([], {})")

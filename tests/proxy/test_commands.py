"""The commands as modules and as console scripts: name, version, help, exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from proxy import __version__

pytestmark = pytest.mark.e2e

SCRIPTS = {
    "streaming-gateway": "proxy.__main__",
    "gateway-keys": "proxy.keys",
}


def run(*argv: str, module: str = "", script: str = "") -> tuple[int, str, str]:
    """`python -m module`, or what an installed console script does."""
    start = ["-m", module]
    if script:
        name = f"sys.argv[0] = '/bin/{script}'"
        start = ["-c", f"import sys; from {SCRIPTS[script]} import command; {name}; sys.exit(command())"]
    done = subprocess.run([sys.executable, *start, *argv], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", ["proxy", "proxy.keys", "proxy.probe"])
def test_each_command_tells_its_version(module: str) -> None:
    assert run("--version", module=module) == (0, f"streaming-gateway {__version__}\n", "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_console_script_is_called_by_its_name(script: str) -> None:
    assert run("--version", script=script) == (0, f"streaming-gateway {__version__}\n", "")
    code, out, _ = run("--help", script=script)
    assert (code, out.startswith(f"usage: {script} ")) == (0, True)
    code, out, err = run("--no-such", script=script)
    assert (code, out) == (2, "")
    assert "--no-such" in err or "required" in err


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("proxy", "--api-keys-file"),
        ("proxy.keys", "Make API keys"),
        ("proxy.probe", "Ask the gateway on this machine"),
    ],
)
def test_each_command_has_its_own_help(module: str, words: str) -> None:
    for flag in ("--help", "-h"):
        code, out, err = run(flag, module=module)
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: python -m {module} ")
        assert words in out
    assert out.count("\n") < 60


def test_a_wrong_setting_is_one_line_and_starts_nothing() -> None:
    assert run("--upstream", "http://h", script="streaming-gateway") == (
        2,
        "",
        "proxy: unknown flag '--upstream'; did you mean --backend?\n",
    )
    code, out, err = run("health", "--prot", "1", module="proxy.probe")
    assert (code, out, err.splitlines()[0]) == (2, "", "proxy.probe: unknown flag '--prot'; did you mean --port?")


def test_what_is_checked_reads_back_through_a_process() -> None:
    """Through the terminal's own escapes, in a locale that has no umlauts."""
    path = '/run/\u00fc "b\\c\u202e\n.sock'
    first = run("--check-config", "--listen-unix", path, "--max-inflight", "auto", module="proxy")
    assert (first[0], first[2]) == (0, "")
    again = subprocess.run(
        [sys.executable, "-m", "proxy", "--check-config", "--config", "/dev/stdin"],
        input=first[1],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        encoding="utf-8",
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == first[1]
    assert "\\u" not in first[1].replace("\\U0000202e", "")

"""Every skip of the tests is made by `tests.kit.missing`, and its reason ends with a command."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

import pytest

from tests.kit import missing

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
SKIPS = {"skip", "skipif", "importorskip"}


def skips(source: str) -> list[int]:
    """The lines that use a skip of pytest, by whatever path."""
    if "skip" not in source:
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in SKIPS and "pytest" in ast.unparse(node.value))
        or (isinstance(node, ast.ImportFrom) and node.module == "pytest" and SKIPS & {n.name for n in node.names})
    ]


def test_a_skip_is_found_by_whatever_name() -> None:
    for line in ("pytest.skip('x')", "pytest.importorskip('x')", "from pytest import skip"):
        assert skips(line) == [1]
    for mark in ("skip", "skipif(1, reason='x')"):
        assert skips(f"@pytest.mark.{mark}\ndef f(): pass") == [1]
    assert skips("queue.skip()") == []


def test_skips_are_made_here_alone() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.parent != TESTS / "kit" or path.name not in ("missing.py", "test_missing.py")
        for line in skips(path.read_text())
    ]
    assert found == [], "use tests.kit.missing: its reasons end with the command that makes the test run"


@pytest.mark.parametrize(
    "words", ["", "needs Chromium", "Debian's systemd", "pip install x", "apt-get install 'x'"]
)
def test_a_reason_without_a_command_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="is not a command"):
        missing.reason("x", words)


def test_the_extras_that_commands_name_exist() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = {
        name
        for path in TESTS.rglob("*.py")
        for groups in re.findall(
            r"\b(?:extra\(([^)]*)\)|(?<!\.)module\(\x22[\w.]+\x22, ([^)]*)\))", path.read_text()
        )
        for name in re.findall(r'"(\w+)"', "".join(groups))
    }
    assert {"ops", "plots", "trace", "dev"} <= named
    assert named <= set(config["options.extras_require"])


def test_a_missing_program_skips_at_a_desk_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="openssl is missing: apt-get install openssl"):
        missing.lacking("openssl", missing.OPENSSL)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="openssl is missing"):
        missing.lacking("openssl", missing.OPENSSL)
    with pytest.raises(pytest.skip.Exception):
        missing.lacking("kubectl", missing.KUBECTL, in_ci=False)

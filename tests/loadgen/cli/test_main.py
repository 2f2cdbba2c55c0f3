"""What starting costs: `--help` and refused usage import no command, and no command imports matplotlib."""

from __future__ import annotations

import sys

import pytest

from loadgen.cli.main import COMMANDS
from tests.kit.patience import run_process


def imported_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    found = run_process([sys.executable, "-c", script], capture_output=True, text=True, seconds=60, check=True)
    return set(found.stdout.split())


def test_help_imports_no_command_and_no_library() -> None:
    modules = imported_by("from loadgen.cli.main import parser_for\nparser_for(())")
    assert modules & {command.module for command in COMMANDS.values()} == set()
    assert modules & {"aiohttp", "msgspec", "rich", "uvloop", "corpus"} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_matplotlib_only_to_draw(command: str) -> None:
    modules = imported_by(f"from loadgen.cli.main import parser_for\nparser_for(('{command}',))")
    assert COMMANDS[command].module in modules
    assert "matplotlib" not in modules


def test_the_server_of_known_schedule_imports_nothing_of_the_measuring_side() -> None:
    modules = imported_by("import loadgen.cli.calibration_server")
    assert {module for module in modules if module.startswith("loadgen.")} == {
        "loadgen.cli",
        "loadgen.cli.calibration_server",
    }

"""The systemd unit: verified and scored by systemd, and its command run with its environment file."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.kit.missing import SYSTEMD
from tests.ops.kit import OPS, Ran, check_config, grace_is_enough, run, tool

UNIT = (OPS / "systemd" / "gateway.service").read_text()
ENV = (OPS / "systemd" / "gateway.env").read_text()
MOST_EXPOSED = 20  # of 100, as `systemd-analyze security --threshold` counts: 12 when this was written


def value(name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    assert len(found) == 1, f"{name}: {found}"
    return str(found[0])


def judged(text: str, folder: Path, *verb: str) -> Ran:
    """With an existing interpreter, since systemd checks that the file exists."""
    (folder / "gateway.service").write_text(text.replace("/opt/gateway/bin/python", sys.executable))
    return run(tool("systemd-analyze", SYSTEMD), *verb, folder / "gateway.service")


def test_systemd_takes_it_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    whole = judged(UNIT, tmp_path, "verify")
    assert (whole.code, whole.said) == (0, "")
    for old, new in (("KillMode=mixed", "KillMood=mixed"), ("Type=exec", "Type=once"), ("ExecStart=", "Exec=")):
        assert UNIT.count(old) == 1
        wrong = judged(UNIT.replace(old, new), tmp_path, "verify")
        assert wrong.said != "", new


def test_systemd_finds_it_well_shut(tmp_path: Path) -> None:
    score = ("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager")
    assert judged(UNIT, tmp_path, *score).code == 0
    open_again = re.sub(
        r"^(CapabilityBoundingSet|SystemCallFilter|DynamicUser)=.*\n", "", UNIT, flags=re.MULTILINE
    )
    assert judged(open_again, tmp_path, *score).code != 0


def test_the_gateway_takes_its_environment_file_and_drains_within_the_stop_s_patience() -> None:
    given = dict(line.split("=", 1) for line in ENV.splitlines() if line and not line.startswith("#"))
    argv = shlex.split(value("ExecStart"))
    done = check_config(argv, given)
    assert done.code == 0, done.err
    assert 'backends = ["http://127.0.0.1:8000"]' in done.out
    assert grace_is_enough(float(value("TimeoutStopSec")), done.out)
    assert not grace_is_enough(25, done.out)
    wrong = check_config(argv, given | {"GATEWAY_BACKENDS": "127.0.0.1:8000"})
    assert str(wrong.code) == value("RestartPreventExitStatus"), "it would be started again and again"


def test_a_reload_is_the_signal_at_which_the_gateway_reads_again() -> None:
    assert value("ExecReload") == "/bin/kill -HUP $MAINPID"


@pytest.mark.parametrize("name", ["gateway.env", "gateway.service"])
def test_its_words_on_installing_name_the_files_that_are_there(name: str) -> None:
    assert f"install -D -m 06{'00' if name.endswith('.env') else '44'} ops/systemd/{name} " in UNIT
    assert (OPS / "systemd" / name).exists()

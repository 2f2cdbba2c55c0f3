"""The trial of `find`: what its table says of answers, which lists it refuses, and its servers."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ops.bench.find_trial.__main__ import main, serving
from ops.bench.find_trial.table import Answer, render
from tests.kit.running import until

SERVERS = Path(__file__).parents[3] / "ops/bench/find_trial/servers.toml"


def answer(load: float | None, seed: int = 0, **facts: object) -> Answer:
    known = {"server": "s", "seconds": 60.0 + seed, "code": 0, "said": "", "state": "found", "limit": 20.0}
    return Answer(**known | {"load": load, "seed": seed} | facts)  # type: ignore[arg-type]


def test_a_row_has_the_worst_error_the_coverage_and_the_seconds() -> None:
    answers = [
        answer(20.4, low=19.9, high=20.9, sound=True),
        answer(19.0, 1, low=18.9, high=19.1, state="unsure"),
        answer(None, 2, state="not met"),
    ]
    row = render(answers, 0.03).splitlines()[2]
    assert row == "| s | 20 | 20.4, 19, not met | -5.0% | 1 of 2 | 61 (60–62) | 1 of 3 | 1 of 3 |"
    assert render(answers, 0.03).endswith("1 of 3 searches are within 3% of the limit.")


def test_of_users_one_more_or_less_is_no_error() -> None:
    assert answer(21, by="users").within(0.03)
    assert not answer(22, by="users").within(0.03)
    assert answer(22, limit=None).within(0.03)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server = 3", "Expected `array`"),
        ("server = " + "[" * 5000, "s.toml: "),
        ('[[server]]\nname = "a"', "missing required field `command`"),
        ('[[server]]\nname = "a"\ncommand = "x"\nfind = ""\nlimt = 3', "unknown field `limt`"),
    ],
)
def test_a_wrong_list_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["--servers", str(tmp_path / "s.toml")])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_each_server_of_the_trees_list_prints_its_url() -> None:
    for server in tomllib.loads(SERVERS.read_text())["server"]:
        with serving(server["command"]) as url:
            assert url.startswith("http://127.0.0.1:")


def test_a_server_that_prints_no_url_is_named() -> None:
    with pytest.raises(RuntimeError, match="must print its URL first"), serving("echo hello"):
        pass


async def test_a_killed_trial_leaves_no_server_running() -> None:
    """Nor a child of the server's: here the server is a shell's."""
    port = killed_trial("sh -c 'python -m ops.bench.find_trial.servers places; true'")
    await until(lambda: not listens(port))


def killed_trial(command: str) -> int:
    """The port of a server that was started by a trial, which was killed then."""
    code = (
        "import sys\n"
        "from ops.bench.find_trial.__main__ import serving\n"
        f"with serving({command!r}) as url:\n"
        "    print(url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=SERVERS.parents[3], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as trial:
        assert trial.stdout is not None
        port = int(trial.stdout.readline().rpartition(b":")[2])
        assert listens(port)
        trial.kill()
    return port


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0

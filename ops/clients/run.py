"""Runs one client's program against the targets and keeps what it says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ops.clients.clients import SOURCES
from ops.clients.programs.kit import Target

DIRECT, THROUGH = "direct", "through"
Words = dict[str, dict[str, str]]
"""What went wrong by feature and target; empty: nothing. Where a program ended early, some are missing."""


@dataclass
class Record:
    """A client's results. `trouble`: why the program did not do all of it."""

    key: str
    version: str
    words: Words
    trouble: str = ""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.key}.json").write_text(json.dumps(asdict(self), indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path, key: str) -> Record | None:
        path = folder / f"{key}.json"
        return cls(**json.loads(path.read_text())) if path.exists() else None


def run(command: Sequence[str], targets: Mapping[str, Target], seconds: float) -> tuple[Words, str]:
    """The words of one program, and what kept it from its end."""
    given = json.dumps({name: asdict(target) for name, target in targets.items()})
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "NO_PROXY": "127.0.0.1,localhost"}
    child = subprocess.Popen(
        [*command, given], env=environment, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    trouble = ""
    try:
        output, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        output, errors = child.communicate()
        trouble = f"it took more than {seconds:.0f} s"
    finally:
        child.kill()
    if child.returncode and not trouble:
        trouble = f"exit code {child.returncode}: {errors.strip()[-300:]}"
    return read(output), trouble


def read(output: str) -> Words:
    words: Words = {}
    for line in output.splitlines():
        if line.startswith("{"):
            said: dict[str, Any] = json.loads(line)
            words.setdefault(said["feature"], {})[said["target"]] = said["words"]
    return words

"""Runs `naive_proxy` as a peer; there is nothing to install."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Final

from ops.bench.peers.base import Command

ROOT: Final = Path(__file__).parents[3]


class Naive:
    name = "aiohttp-naive"
    ready = "/health"  # forwarded to the engine
    reserialises = False

    def headers(self, engine: str) -> dict[str, str]:
        return {}

    def install(self, home: Path) -> None:
        """Nothing to do: it runs on this interpreter."""

    def version(self, home: Path) -> str:
        return f"aiohttp {importlib.metadata.version('aiohttp')}"

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        return Command(
            [sys.executable, "-m", "ops.bench.peers.naive_proxy", "--port", str(port), "--engine", engine],
            {},
            ROOT,
        )

"""Portkey's gateway from npm, with the two dependencies that need a pinned version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from ops.bench.peers.base import PINS, Command, InstallError
from ops.bench.peers.folder import Run, ensure, need, run

GATEWAY: Final = "@portkey-ai/gateway"
HELD: Final = ("hono", "@hono/node-server")  # why: see PINS


def package() -> str:
    """The package.json for its installation."""
    held = {name: PINS[name] for name in HELD}
    return json.dumps({"private": True, "dependencies": {GATEWAY: PINS[GATEWAY]}, "overrides": held}, indent=2)


class Portkey:
    """The open-source gateway on Node. It forwards unchanged responses as bytes."""

    name = "portkey"
    ready = "/"
    reserialises = False

    def __init__(self, run: Run = run) -> None:
        self._run = run

    def headers(self, engine: str) -> dict[str, str]:
        return {
            "Authorization": "Bearer none",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"{engine}/v1",
        }

    def install(self, home: Path) -> None:
        folder = home / self.name

        def work() -> None:
            if shutil.which("npm") is None:
                raise InstallError("npm is not on the PATH: Portkey's gateway needs Node 18 or newer with npm")
            (folder / "package.json").write_text(package())
            # Its install scripts only patch development tools.
            self._run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)

        ensure(folder, package(), work)

    def version(self, home: Path) -> str:
        found = [self._installed(home, name) for name in (GATEWAY, *HELD)]
        node = self._run(["node", "--version"], seconds=10).strip()
        return f"{found[0]} (hono {found[1]}, node-server {found[2]}, Node {node.removeprefix('v')})"

    def _installed(self, home: Path, name: str) -> str:
        path = need(home / self.name / "node_modules" / name / "package.json", self.name)
        return str(json.loads(path.read_text())["version"])

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        program = home / self.name / "node_modules" / GATEWAY / "build" / "start-server.js"
        argv = ["node", str(need(program, self.name)), f"--port={port}", "--headless"]
        return Command(argv, {"NODE_ENV": "production"}, work)

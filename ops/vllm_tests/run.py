"""Runs modules of vLLM's tests: through the gateway; then the failed tests direct; then those that passed direct
once more through the gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ops.vllm_tests import outcome, plugin
from ops.vllm_tests.demand import Together
from ops.vllm_tests.stand import Stand

REMOTE: Final = re.compile(rf"\b{plugin.CLASS}\(")
MODULE_SECONDS: Final = 1800.0
"""Time limit of one run of a module's tests, with its servers."""
MISSING: Final = "not in this release"


@dataclass(frozen=True)
class Suite:
    """The contents of modules.toml."""

    models: dict[str, str]
    """Hub names, and which of our models replaces each."""
    empty: tuple[str, ...]
    """Hub names of adapters, whose files are not read here."""
    modules: tuple[str, ...]
    left_out: dict[str, str]
    """Modules that use a server, and tests of others, that are not run, with the reason."""
    together: dict[str, Together]

    @classmethod
    def read(cls, file: Path) -> Suite:
        content = tomllib.loads(file.read_text())
        left_out = {path: group["why"] for group in content["left_out"] for path in group["modules"]}
        together = {
            ours: Together(tuple(one["flags"]), tuple(one["names"]), one["env"])
            for ours, one in content["together"].items()
        }
        return cls(content["models"], tuple(content["adapters"]), tuple(content["modules"]), left_out, together)

    def unknown(self, checkout: Path) -> list[str]:
        """Modules of the checkout that use a server and are not listed."""
        found = (checkout / "tests" / "entrypoints").rglob("test_*.py")
        asking = {str(path.relative_to(checkout)) for path in found if REMOTE.search(path.read_text())}
        return sorted(asking - {*self.modules, *self.left_out})


class Run:
    """`python`: the command that starts pytest; `path`: PYTHONPATH entries, the checkout first."""

    def __init__(
        self,
        stand: Stand,
        checkout: Path,
        python: Sequence[str],
        environment: Mapping[str, str],
        path: Sequence[str],
        out: Path,
        test_seconds: float,
        left_out: Iterable[str] = (),
    ) -> None:
        self._stand = stand
        self.checkout = checkout
        self._python = tuple(python)
        self._path = os.pathsep.join(path)
        self._environment = dict(environment)
        self._out = out
        self._test_seconds = test_seconds
        self._left_out = [word for name in left_out if "::" in name for word in ("--deselect", name)]

    def modules(self, paths: Sequence[str]) -> list[outcome.Module]:
        """Run these modules by one pytest through the gateway, failed tests by one direct, and those of them that
        passed direct by one through the gateway again."""
        began = time.monotonic()
        there = [path for path in paths if (self.checkout / path).is_file()]
        through, trouble = self._pytest(there, "gateway", []) if there else ([], "")
        failing = outcome.failing(through)
        direct, more = self._pytest(there, "engine", failing) if failing else ([], "")
        alone = [one["id"] for one in direct if one["outcome"] == "passed"]
        again, last = self._pytest(there, "gateway", alone) if alone else ([], "")
        made = [outcome.Module(path, trouble=MISSING) for path in paths if path not in there]
        seconds = (time.monotonic() - began) / max(1, len(there))
        for path in there:
            runs = (_of(path, found) for found in (through, direct, again))
            made.append(outcome.judged(path, *runs, trouble=trouble or more or last, seconds=seconds))
        return made

    def _pytest(self, paths: Sequence[str], target: str, only: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
        """The outcomes of their tests, and why the run was cut off; `only`: these tests, or all."""
        patience = MODULE_SECONDS * len(paths)
        name = f"{paths[0].replace('/', '.')}.{target}{'.again' if only and target == 'gateway' else ''}"
        logs = self._out / "runs"
        logs.mkdir(parents=True, exist_ok=True)
        results, chosen, temporary = logs / f"{name}.jsonl", logs / f"{name}.only", self._out / "tmp"
        results.unlink(missing_ok=True)
        chosen.write_text(json.dumps(only))
        temporary.mkdir(exist_ok=True)
        orders = {
            plugin.BROKER: str(self._stand.socket),
            plugin.TARGET: target,
            plugin.ONLY: str(chosen) if only else "",
            plugin.RESULTS: str(results),
            "PYTHONPATH": self._path,
            "TMPDIR": str(temporary),
        }
        command = [*self._python, *paths, "-p", "ops.vllm_tests.plugin", "-q"]
        command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", *self._left_out]
        command += ["-o", f"timeout={self._test_seconds:.0f}", "-o", "timeout_func_only=true"]
        with (logs / f"{name}.log").open("wb") as log:
            try:
                code: int | None = subprocess.run(
                    command,
                    cwd=self.checkout,
                    env=self._environment | orders,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=patience,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        if code in (0, 1, 5) or any(one["outcome"] == "uncollected" for one in found):
            return found, ""
        how = f"took more than {patience:.0f} s" if code is None else f"ended with {code}"
        return found, f"pytest {how} on the way to the {target}: {logs / name}.log"


def _of(path: str, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in found if one["id"].partition("::")[0] == path]

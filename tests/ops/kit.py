"""Helpers of the tests of `ops/`: the tools that check its files, and the gateway run as those files run it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from proxy.config.loader import load
from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.resources import prepare
from tests.kit.missing import extra, lacking
from tests.kit.patience import run_process

ROOT = Path(__file__).parent.parent.parent
OPS = ROOT / "ops"
WHEELS = extra("dev", "ops")
SECONDS = 40.0  # after which a tool is taken to hang


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def tool(name: str, command: str = WHEELS) -> str:
    """The path of the program: next to this Python, or from the PATH. `command` installs it."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return found or lacking(name, command)


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Ran:
    """Run the command to its end. `env` is its whole environment; None: ours."""
    done = run_process(
        [str(part) for part in command], env=env, cwd=cwd, capture_output=True, text=True, seconds=SECONDS
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def documents(text: str) -> list[Any]:
    """The documents of a YAML file."""
    try:
        from ruamel.yaml import YAML
    except ImportError:
        lacking("ruamel.yaml", WHEELS)
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document is not None]


def bare(extra: Mapping[str, str]) -> dict[str, str]:
    """An environment as in a container or a unit: only our PATH and `extra`."""
    return {"PATH": os.environ["PATH"], **extra}


def check_config(argv: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> Ran:
    """`python -m proxy …` with `--check-config`, run by this interpreter."""
    assert argv[0].rpartition("/")[2] == "python", argv
    return run(sys.executable, *argv[1:], "--check-config", env=bare({**env, "PYTHONPATH": str(ROOT)}), cwd=cwd)


def refusal(env: Mapping[str, str]) -> str:
    """The gateway's error for an invalid environment, without a process."""
    with pytest.raises(SettingsError) as refused:
        prepare(load([], env))
    return str(refused.value)


async def to_the_end(*command: str, env: Mapping[str, str]) -> Ran:
    """Run a command in a thread, so that the event loop can serve it meanwhile."""
    return await asyncio.to_thread(run, *command, env=bare({**env, "PYTHONPATH": str(ROOT)}))


def printed(said: str) -> Settings:
    """The settings that `--check-config` printed before its warnings."""
    return load([], {"GATEWAY_CONFIG": "printed.toml"}, lambda path: said.partition("proxy: warning: ")[0])


def grace_is_enough(grace: float, settings: str) -> bool:
    """Whether `grace` exceeds the time the gateway needs to drain. `settings`: the output of `--check-config`."""
    return grace > printed(settings).drain_delay + printed(settings).drain_timeout

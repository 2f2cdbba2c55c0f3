"""The names that users, scripts, dashboards and clients depend on. One that changes or goes breaks somebody: it is
deprecated first. A new one is added to `public_names.txt`: UPDATE_PUBLIC_NAMES=1 writes the file."""

from __future__ import annotations

import argparse
import ast
import gc
import os
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from proxy.config.settings import options
from proxy.errors import Code
from proxy.telemetry.log import RequestRecord
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, gateway, until

FROZEN = Path(__file__).with_name("public_names.txt")
ROOT = Path(__file__).parent.parent
COMMANDS = {
    "proxy": [],
    "proxy.keys": ["new", "hash"],
    "proxy.probe": [],
    "loadgen": [
        *(
            "run",
            "vllm-bench-serve",
            "ab",
            "sweep",
            "find",
            "quick",
            "calibrate",
            "report",
            "compare",
            "merge",
            "export",
        ),
    ],
    "corpus": ["list", "stats", "verify", "documents", "calibrate", "compose"],
}
SHORT_HELP = {("proxy",), ("proxy.probe",)} | {("loadgen", name) for name in ("run", "ab", "sweep", "find")}
PLAIN = ("proxy.keys", "proxy.probe")  # modules, not packages
SAMPLE = re.compile(r"^(gateway_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
HEADER = re.compile(r"x-(?:gateway|ratelimit|request|should|forwarded|session|data)-[a-z-]+")


def flags(module: str, *command: str) -> Iterator[str]:
    said: list[str] = []

    def print_help(parser: argparse.ArgumentParser, file: object = None) -> None:
        said.append(parser.format_help())

    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", print_help),
        mock.patch.object(
            sys, "argv", [module, *command, "--help-all" if (module, *command) in SHORT_HELP else "--help"]
        ),
        mock.patch.dict(os.environ, COLUMNS="400"),
        suppress(SystemExit),
    ):
        runpy.run_module(module if module in PLAIN else f"{module}.__main__", run_name="__main__")
    for flag in FLAG.findall("".join(said)):
        yield f"flag {' '.join((module, *command))} {flag}"


def headers() -> Iterator[str]:
    for path in (ROOT / "proxy").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and HEADER.fullmatch(node.value):
                yield f"header {node.value}"


def metrics(page: str) -> Iterator[str]:
    """Each with the names of its labels."""
    for name, labels in SAMPLE.findall(page):
        names = sorted(set(re.findall(r'(\w+)="', labels)) - {"le"})
        yield f"metric {name}{{{','.join(names)}}}"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
async def test_public_names_do_not_change() -> None:
    names = {f"environment GATEWAY_{option.name.upper()}" for option in options()}
    names |= {f"setting {option.name}" for option in options()}
    names |= {f"error {code.code}" for code in Code}
    names |= {f"log {field}" for field in RequestRecord.__struct_fields__}
    names |= set(headers())
    for module, commands in COMMANDS.items():
        names |= set(flags(module))
        names |= {name for command in commands for name in flags(module, command)}
    async with Engine(echo_script()) as engine, gateway(engine, rate_limit_rps=1000.0, log_prompts=True) as app:
        await post_json(app.url, "/v1/chat/completions", HELLO)
        await post_json(app.url, "/v1/embeddings", {"model": "m1", "input": "a"})
        await until(lambda: len(app.group) == 0)
        gc.collect()  # its pauses are a metric
        await until(lambda: len(app.metrics.samples("event_loop_lag_seconds")) > 0)  # a second after the start
        names |= set(metrics((await get(app.url, "/metrics")).body.decode()))
    if os.environ.get("UPDATE_PUBLIC_NAMES"):
        FROZEN.write_text("\n".join(sorted(names)) + "\n")
    frozen = set(FROZEN.read_text().split("\n")) - {""}
    assert sorted(frozen - names) == [], "these went: they are public"
    assert sorted(names - frozen) == [], "these are new: UPDATE_PUBLIC_NAMES=1 adds them"

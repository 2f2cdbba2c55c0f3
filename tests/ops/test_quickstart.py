"""The commands of the quick start, run as a reader pastes them, print what the page shows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.kit.engine import Engine, Turn
from tests.kit.patience import patience
from tests.kit.ports import free_port
from tests.kit.running import PATIENT, until
from tests.ops.kit import OPS, ROOT, tool

PAGE = (OPS / "docs" / "quickstart.md").read_text("utf-8")
FENCES = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHANGES = re.compile(r"[0-9a-f]{32,}|\w{3}, \d+ \w{3}|\d+")  # ids, dates and numbers of one run
INSTALL = "pip install ."
SECONDS = 45.0
VLLM = "http://127.0.0.1:8000"
TOKENS = 64
STORED = (
    "sleep 1     # until it is stored",
    """until curl -s --cacert cert.pem -H "authorization: Bearer $(cat operator.key)" $G/metrics |
  grep -q 'gateway_cache_operations_total{op="store"} 1'; do :; done""",
)
STOP = ("kill $gateway", "python client.py; kill $gateway")


def commands() -> str:
    return "".join(text for language, text in FENCES.findall(PAGE) if language == "sh" and INSTALL not in text)


def shown() -> list[str]:
    """Lines of output on the page. `…` stands for output left out, or for the rest of a line."""
    lines = "".join(text for language, text in FENCES.findall(PAGE) if not language).splitlines()
    return [line for line in lines if line.strip(" …")]


def python_of_the_page() -> str:
    (text,) = [text for language, text in FENCES.findall(PAGE) if language == "python"]
    return str(text)


def masked(line: str) -> str:
    return CHANGES.sub("#", line)


def not_printed(output: str) -> list[str]:
    printed = [masked(line) for line in output.splitlines()]
    return [line for line in shown() if not any(line_matches(masked(line), other) for other in printed)]


def line_matches(line: str, printed: str) -> bool:
    return printed.startswith(line.partition("…")[0]) if "…" in line else printed == line


def test_a_line_that_is_not_printed_is_found() -> None:
    output = "\n".join(line.replace("…", "and more") for line in shown())
    assert not_printed(output) == []
    assert not_printed(output.replace("PONG", "PANG")) == ["PONG"]
    assert not_printed(output.replace("the same bytes", "")) == ["the same bytes"]


@pytest.mark.e2e
async def test_the_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    for program, package in (("redis-cli", "redis-server"), ("curl", "curl"), ("openssl", "openssl")):
        tool(program, f"apt-get install --no-install-recommends {package}")
    bodies = [tmp_path / "one.body", tmp_path / "two.body"]
    words = [f"word{n} " for n in range(TOKENS)]

    async def script(turn: Turn) -> None:
        """Answers the rest when both readers have the first word."""
        await turn.send(words[0])
        await until(lambda: all(path.is_file() and path.stat().st_size for path in bodies))
        await turn.send(*words[1:])
        await turn.finish(reason="length", prompt_tokens=34, completion_tokens=TOKENS)

    redis, gateway = free_port(), free_port()
    async with Engine(script, models=["smollm2"]) as engine:
        text = commands()
        for old, new in ((VLLM, engine.url), ("6390", str(redis)), ("8443", str(gateway)), STORED, STOP):
            assert old in text
            text = text.replace(old, new)
        cleanup = f"trap 'redis-cli -p {redis} shutdown nosave 2> /dev/null; kill $gateway 2> /dev/null' EXIT"
        (tmp_path / "client.py").write_text(python_of_the_page().replace("8443", str(gateway)))
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {"PATH": path, "PYTHONPATH": str(ROOT), **PATIENT}
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", f"{cleanup}\n{text}", cwd=tmp_path, env=env,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            async with patience(SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGTERM)  # the trap stops Redis, which is a daemon
                await process.communicate()
    assert not_printed(output.decode()) == [], output.decode()
    assert process.returncode == 0
    assert output.decode().splitlines().count("smollm2") == 2, "one by curl, one by OpenAI's client"

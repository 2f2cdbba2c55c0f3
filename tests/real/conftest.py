"""Owns the real engines of these tests: started by ops/vllm.py once a run, or named by `VLLM_URL`.
Must not know what is asked of them.
Called by pytest."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.kit.client import get
from tests.kit.patience import patience
from tests.kit.ports import free_port

PROGRAM = Path(__file__).parents[2] / "ops" / "vllm.py"
FLAGS: dict[str, tuple[str, ...]] = {"vllm": (), "vllm_that_forces": ("--enable-force-include-usage",)}
"""Flags of each engine, by its fixture."""
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
"""The model runs in the engine's process. Else a third process imports vLLM (a quarter of a load), is bound to the
CPU to which that of each other engine is bound, and is waited for by spinning on the other one."""


@contextmanager
def started(*flags: str) -> Iterator[str]:
    """A vLLM of the release that `VLLM_RELEASE` says, which may still be loading."""
    port = free_port()
    process = subprocess.Popen(
        # In float32, not bfloat16: runs are compared token for token, and there are fewer ties to part at.
        [sys.executable, PROGRAM, "serve", "--port", str(port), "--die-with-parent", "--dtype", "float32", *flags],
        # For /pause, by which it aborts streams; and it keeps responses.
        env={"VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_RESPONSES_API_STORE": "1", **ONE_PROCESS, **os.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=60)


@pytest.fixture(scope="session", autouse=True)
def engines(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The URLs of all engines that a selected test asks for, by fixture. They load at the same time, while tests
    that ask for none run: a load is half a minute of one CPU."""
    asked = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    if os.environ.get("VLLM_URL"):
        asked.discard("vllm")
    with ExitStack() as stack:
        yield {name: stack.enter_context(started(*flags)) for name, flags in FLAGS.items() if name in asked}


@pytest.fixture(scope="session")
def vllm(engines: dict[str, str]) -> str:
    """The engine's URL."""
    return os.environ.get("VLLM_URL") or engines["vllm"]


@pytest.fixture(scope="session")
def vllm_that_forces(engines: dict[str, str]) -> str:
    """The URL of one that gives usage unasked."""
    return engines["vllm_that_forces"]


@pytest.fixture
async def engine(vllm: str) -> str:
    """The same as `vllm`, once it answers."""
    return await up(vllm)


async def up(url: str) -> str:
    async with patience(400):
        while True:
            try:
                if (await get(url, "/health")).status == 200:
                    await asyncio.to_thread(_warm, url)
                    return url
            except OSError:
                await asyncio.to_thread(_look_again_in_a_second)


@cache
def _warm(url: str) -> None:
    """A fresh vLLM compiles what the first log probabilities need, for longer than a test waits for a byte."""
    ask = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
    }
    path = "/v1/chat/completions"
    request = Request(url + path, json.dumps(ask).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=300) as answer:
        answer.read()


def _look_again_in_a_second() -> None:
    """A loading model opens no port, so there is nothing to wait for but time."""
    subprocess.run([sys.executable, "-c", "import time; time.sleep(1)"], check=True)

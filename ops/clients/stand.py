"""The engines and the gateway that the clients are run against."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ops import vllm
from ops.bench.subjects import free_port
from ops.clients.programs.kit import Target
from ops.clients.run import DIRECT, THROUGH
from ops.vllm_tests.stand import LISTENS, StartError, answers

ENGINE_SECONDS: Final = 900.0
GATEWAY_SECONDS: Final = 60.0
LOOK: Final = 0.2
CHAT: Final = (
    *("--max-model-len", "8192", "--tool-strict-level", "parameter", "--allowed-origins", '["*"]'),
    *("--port",),
)
"""vLLM's flags: the arguments of tools keep to their schemas, and pages may use it, as they may the gateway."""
GATEWAY: Final = ("--port", "0", "--max-inflight", "1", "--keepalive-seconds", "0.3", "--cors-origins", "*")
"""One request at a time at an engine, so that a second one is silent for a while."""


@contextlib.contextmanager
def standing(
    engine: str | None, embeds: str | None, models: tuple[str, str], logs: Path
) -> Iterator[dict[str, Target]]:
    """The targets by name. An engine that is None is a vLLM started here: `ops/vllm.py`'s models, responses kept.
    Raises StartError."""
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        starts = {}
        if engine is None:
            keeping = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
            engine, starts["chat"] = stack.enter_context(_vllm(logs / "chat.log", CHAT, keeping))
            embeds, starts["embed"] = stack.enter_context(_vllm(logs / "embed.log", ("--embed", "--port"), {}))
        backends = list(dict.fromkeys((engine, embeds or engine)))
        for url in backends if not starts else ():
            if not answers(f"{url}/health"):
                raise StartError(f"no engine answers at {url}/health")
        for name, started in starts.items():
            url = {"chat": engine, "embed": backends[-1]}[name]
            _wait(name, started, logs / f"{name}.log", ENGINE_SECONDS, partial(answers, f"{url}/health"))
        gateway = stack.enter_context(_gateway(logs / "gateway.log", backends))
        model, embed_model = models
        yield {
            DIRECT: Target(engine, backends[-1], engine, model, embed_model),
            THROUGH: Target(gateway, gateway, engine, model, embed_model),
        }


@contextlib.contextmanager
def _vllm(
    log: Path, flags: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, vllm.__file__, "serve", "--die-with-parent", *flags, str(port)]
    with _child(log, command, {**os.environ, **environment}) as child:
        yield f"http://127.0.0.1:{port}", child


@contextlib.contextmanager
def _gateway(log: Path, backends: Sequence[str]) -> Iterator[str]:
    flags = [word for url in backends for word in ("--backend", url)]
    command = [sys.executable, "-m", "proxy", *flags, *GATEWAY]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    with _child(log, command, environment) as child:

        def ready() -> bool:
            said = LISTENS.search(log.read_bytes())
            return said is not None and answers(f"{said[1].decode()}/ready")

        _wait("gateway", child, log, GATEWAY_SECONDS, ready)
        said = LISTENS.search(log.read_bytes())
        assert said is not None
        yield said[1].decode()


@contextlib.contextmanager
def _child(log: Path, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def _wait(name: str, child: subprocess.Popen[bytes], log: Path, seconds: float, fact: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not fact():
        if child.poll() is not None or time.monotonic() > end:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
            raise StartError(f"the {name} is not ready (exit code {child.returncode}): {log}\n{tail}")
        time.sleep(LOOK)

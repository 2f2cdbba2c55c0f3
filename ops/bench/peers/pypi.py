"""The peers from PyPI: each in its own virtual environment, and the flags they are run with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ops.bench.peers.base import PINS, Command, InstallError
from ops.bench.peers.folder import Run, ensure, need, run
from ops.bench.subjects import free_port
from ops.bench.wire import MODEL

# Tokio's default is one thread per core; the benchmark compares single workers.
ONE_THREAD: Final = {"TOKIO_WORKER_THREADS": "1"}
LITELLM_KEY: Final = "sk-bench"  # key of a proxy on loopback that lives as long as the run
LITELLM: Final = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: hosted_vllm/{model}
      api_base: {engine}/v1
      api_key: none
litellm_settings:
  num_retries: 0
  request_timeout: 600
  set_verbose: false
general_settings:
  master_key: {key}
"""


class Distribution:
    """A distribution in its own virtual environment."""

    reserialises = False

    def __init__(self, name: str, distribution: str, ready: str, extra: str = "", run: Run = run) -> None:
        self.name = name
        self.ready = ready
        self._distribution = distribution
        self._requirement = f"{distribution}{extra}=={PINS[distribution]}"
        self._run = run

    def headers(self, engine: str) -> dict[str, str]:
        return {}

    def install(self, home: Path) -> None:
        venv = home / self._distribution / "venv"

        def work() -> None:
            self._run([sys.executable, "-m", "venv", str(venv)])
            pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            self._run([*pip, "install", "--quiet", self._requirement])

        python = ".".join(map(str, sys.version_info[:2]))
        ensure(home / self._distribution, f"{self._requirement} on Python {python}", work)

    def version(self, home: Path) -> str:
        self._python(home)
        stem = self._distribution.replace("-", "_")
        for info in (home / self._distribution / "venv" / "lib").glob(
            f"python3*/site-packages/{stem}-*.dist-info"
        ):
            return info.name.removeprefix(f"{stem}-").removesuffix(".dist-info")
        raise InstallError(f"{self._distribution} is missing in its environment below {home}: install it again")

    def _python(self, home: Path) -> Path:
        return need(home / self._distribution / "venv" / "bin" / "python", self.name)


def router(
    python: Path, launch: Sequence[str], flags: Sequence[str], port: int, engine: str, work: Path
) -> Command:
    """The command of a router of `python`, with one thread."""
    return Command(
        [
            str(python), *launch, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", engine,
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), *flags,
        ],
        ONE_THREAD,
        work,
    )  # fmt: skip


class Router(Distribution):
    """A router written in Rust with a Python launcher; its threads are Tokio's."""

    def __init__(self, name: str, distribution: str, launch: tuple[str, ...], *flags: str, run: Run = run) -> None:
        # /readiness, not /health: the router answers before it has registered its workers.
        super().__init__(name, distribution, "/readiness", run=run)
        self._launch = launch
        self._flags = flags

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        return router(self._python(home), self._launch, self._flags, port, engine, work)


class LiteLLM(Distribution):
    """LiteLLM's proxy: one worker, no database, no downloads and no telemetry."""

    reserialises = True
    environment: Final = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "NO_DOCS": "True",
    }

    def __init__(self, run: Run = run) -> None:
        super().__init__("litellm", "litellm", "/health/readiness", "[proxy]", run)

    def headers(self, engine: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {LITELLM_KEY}"}

    def command(self, home: Path, work: Path, port: int, engine: str) -> Command:
        program = self._python(home).parent / "litellm"
        config = work / "litellm.yaml"
        config.write_text(LITELLM.format(model=MODEL, engine=engine, key=LITELLM_KEY))
        return Command(
            [
                str(program), "--host", "127.0.0.1", "--port", str(port), "--config", str(config),
                "--num_workers", "1", "--telemetry", "False",
            ],
            self.environment,
            work,
        )  # fmt: skip


VLLM_ROUTER: Final = ("-m", "vllm_router.launch_router")
ROUND_ROBIN: Final = ("--log-level", "warning", "--policy", "round_robin")


def vllm_router(run: Run = run) -> Router:
    """Its default policy is cache_aware: the engine renders each prompt, and the router routes by the tokens."""
    return Router("vllm-router", "vllm-router", VLLM_ROUTER, "--log-level", "warning", run=run)


def vllm_router_round_robin(run: Run = run) -> Router:
    return Router("vllm-router-rr", "vllm-router", VLLM_ROUTER, *ROUND_ROBIN, run=run)


def sglang_router(run: Run = run) -> Router:
    launch = ("-m", "sglang_router.launch_router")
    flags = ("--log-level", "warn", "--policy", "round_robin")
    return Router("sglang-router", "sglang-router", launch, *flags, run=run)


def smg(run: Run = run) -> Router:
    """The Shepherd Model Gateway. Load monitoring would poll the engine; routing needs no tokenizers."""
    flags = (
        "--log-level", "warn", "--policy", "round_robin",
        "--disable-load-monitoring", "--disable-tokenizer-autoload",
    )  # fmt: skip
    return Router("smg", "smg", ("-m", "smg.cli", "launch"), *flags, run=run)

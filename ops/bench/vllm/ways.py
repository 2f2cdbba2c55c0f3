"""Starts one engine and the gateways in front of it that a benchmark compares, each as its own process."""

from __future__ import annotations

import argparse
import shlex
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.bench import subjects as start
from ops.bench.vllm.real import ROOT, START_SECONDS, counted

LIMITS: Final = ("--limit-cpu", "2", "--limit-error-ms", "50", "--limit-late-ms", "2000", "--max-error-rate", "1")
"""Of the load generator's self-checks: it shares the cores with everything else, and differences are seconds."""
COUNTERS: Final = {"queries": "vllm:prefix_cache_queries_total", "hits": "vllm:prefix_cache_hits_total"}


@dataclass(frozen=True, slots=True)
class Gateway:
    flags: Sequence[str] = ()
    checkout: Path = ROOT  # the source tree of the gateway


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose the engine."""
    parser.add_argument("--engine", metavar="URL", help="a running vLLM (default: one is started on this CPU)")
    parser.add_argument(
        "--engine-flags", type=shlex.split, default=[], metavar="FLAGS", help="flags of the engine that is started"
    )
    parser.add_argument("--toy", action="store_true", help="a fake engine instead of vLLM, for a dry run")
    parser.add_argument(
        "--cpus",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[0, 1],
        help="CPUs for engine and gateways (default 0,1)",
    )


@contextmanager
def ways(
    args: argparse.Namespace, work: Path, gateways: Mapping[str, Gateway]
) -> Iterator[tuple[str, dict[str, str]]]:
    """The engine's URL, and each way's name with its URL; `direct` is the first."""
    cpus = set(args.cpus)
    with ExitStack() as stack:
        url = args.engine
        if url is None:
            port = start.free_port()
            serve = [sys.executable, "-m", "ops.bench.vllm.fake_engine", "--port", str(port), *args.engine_flags]
            if not args.toy:
                # float32: without bfloat16 instructions in the CPU, bfloat16 takes minutes per request.
                program = [sys.executable, str(ROOT / "ops" / "vllm.py"), "serve", "--port", str(port)]
                serve = [*program, "--dtype", "float32", *args.engine_flags]
            stack.enter_context(
                start.started(start.Command(serve, cwd=ROOT), port, cpus,
                              ready=lambda: start.answers(port, "/health", {}), log=work / "engine.log",
                              patience=START_SECONDS)
            )  # fmt: skip
            url = f"http://127.0.0.1:{port}"
        found = {"direct": url}
        for number, (name, gateway) in enumerate(gateways.items()):
            port = start.free_port()
            command = [sys.executable, "-m", "proxy", "--port", str(port), "--backend", url, "--redis", "off"]
            command += gateway.flags
            stack.enter_context(
                start.started(start.Command(command, cwd=gateway.checkout), port, cpus,
                              ready=lambda port=port: start.answers(port, "/ready", {}),  # type: ignore[misc]
                              log=work / f"gateway-{number}.log")
            )  # fmt: skip
            found[name] = f"http://127.0.0.1:{port}"
        yield url, found


def page(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:  # noqa: S310 - a process started here
        text: str = answer.read().decode()
    return text


def counters(engine: str) -> dict[str, float]:
    """Tokens looked up in the engine's prefix cache, and tokens found there."""
    text = page(engine)
    return {name: counted(text, series) for name, series in COUNTERS.items()}

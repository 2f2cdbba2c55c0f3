"""Compares vLLM direct with vLLM through the gateway, in paired requests, and counts the engine work that sharing
saves. `loadgen` measures the clients; the engine's own counters give its work."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ops.bench import subjects as start
from ops.bench.account import cpu_ns
from ops.bench.table import machine
from ops.bench.vllm.tables import spread

ROOT: Final = Path(__file__).resolve().parents[3]
START_SECONDS: Final = 300.0
WITHOUT_PLOTS: Final = (  # `python -m loadgen` as where matplotlib is not installed: drawing takes 1.6 s of CPU
    "import runpy, sys; sys.modules['matplotlib'] = None; runpy.run_module('loadgen', run_name='__main__')"
)
COUNTERS: Final = {
    "requests": "vllm:request_success_total",
    "prompt": "vllm:prompt_tokens_total",
    "generated": "vllm:generation_tokens_total",
}


@dataclass(frozen=True, slots=True)
class Work:
    """The engine's work in a time span: requests, tokens in and out, and CPU seconds if it runs here."""

    requests: float
    prompt: float
    generated: float
    cpu_s: float | None

    def since(self, before: Work) -> Work:
        cpu = None if self.cpu_s is None or before.cpu_s is None else self.cpu_s - before.cpu_s
        return Work(
            self.requests - before.requests, self.prompt - before.prompt, self.generated - before.generated, cpu
        )


def counted(page: str, name: str) -> float:
    """The sum of a counter over its labels on vLLM's metrics page; 0 if it is not there."""
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", page, re.M))


def work_of(url: str, pid: int | None) -> Work:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:  # noqa: S310 - the engine that was named
        page = answer.read().decode()
    values = {name: counted(page, series) for name, series in COUNTERS.items()}
    return Work(**values, cpu_s=None if pid is None else cpu_ns(pid) / 1e9)


def loadgen(*arguments: str, folder: Path, seconds: float | None = None) -> dict[str, Any]:
    """Run the load generator and return its result, without plots. It is killed after `seconds`; None: never.

    Raises RuntimeError with its output if there is no result.
    """
    argv = [sys.executable, "-c", WITHOUT_PLOTS, *arguments, "--quiet", "--result-dir", str(folder)]
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"loadgen did not end within {seconds:.0f} s") from error
    made = sorted(folder.glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    if not made:
        raise RuntimeError(f"loadgen exited {done.returncode}: {done.stderr[-800:]}")
    result: dict[str, Any] = json.loads(made[-1].read_bytes())
    result["exit"] = done.returncode
    return result


def pairs(a: str, b: str, streams: int, args: argparse.Namespace, seed: int, folder: Path) -> Mapping[str, Any]:
    """One paired run with unique, sampled prompts: nothing can be shared."""
    result = loadgen(
        "ab", "--a", a, "--b", b, "--backend", "openai-chat", "--max-concurrency", str(streams), "--num-prompts",
        str(max(args.prompts, 2 * streams)), "--max-tokens", str(args.tokens), "--ignore-eos", "--unique",
        "--temperature", "1", "--seed", str(seed), "--num-warmups", "4", "--corpus-set", args.sets, "--limit-cpu",
        "2", "--limit-error-ms", "50", "--limit-late-ms", "1000", "--label", f"ab-{streams}", folder=folder,
    )  # fmt: skip
    paired: Mapping[str, Any] = result["loadgen"]["paired"]
    return paired


def middle(stat: Mapping[str, Any]) -> tuple[float, float, float]:
    """The median of the differences and its confidence interval, ms."""
    for point in stat["quantiles"]:
        if point["p"] == 50 and point["interval"] is not None:
            return point["value"], point["interval"]["low"], point["interval"]["high"]
    raise RuntimeError("too few pairs for a median")


def duplicates(url: str, engine: str, pid: int | None, args: argparse.Namespace, seed: int, folder: Path) -> Any:
    """One run with many duplicates: its result, and the engine's work for it."""
    before = work_of(engine, pid)
    result = loadgen(
        "run", "--base-url", url, "--backend", "openai-chat", "--max-concurrency", str(args.streams[-1]),
        "--num-prompts", str(4 * args.prompts), "--max-tokens", str(args.tokens), "--ignore-eos", "--duplicates",
        str(args.duplicates), "--temperature", "0", "--unique", "--seed", str(seed), "--corpus-set", args.sets,
        "--limit-cpu", "2", "--limit-error-ms", "50", "--limit-late-ms", "1000", "--label", f"dup-{seed}",
        folder=folder,
    )  # fmt: skip
    return result, work_of(engine, pid).since(before)


@contextmanager
def stage(args: argparse.Namespace, work: Path) -> Iterator[tuple[str, int | None, str]]:
    """(engine URL, its process id if started here, gateway URL)."""
    with ExitStack() as stack:
        pid, url = None, args.engine
        if url is None:
            port = start.free_port()
            # float32: without bfloat16 instructions in the CPU, bfloat16 takes minutes per request.
            argv = [
                sys.executable,
                str(ROOT / "ops" / "vllm.py"),
                "serve",
                "--port",
                str(port),
                "--dtype",
                "float32",
            ]
            serve = start.Command(argv)
            ready = stack.enter_context(
                start.started(serve, port, set(args.cpus), ready=lambda: start.answers(port, "/health", {}),
                              log=work / "vllm.log", patience=START_SECONDS)
            )  # fmt: skip
            pid, url = ready.pid, f"http://127.0.0.1:{port}"
        port = start.free_port()
        gateway = start.Command([sys.executable, "-m", "proxy", "--port", str(port), "--backend", url], cwd=ROOT)
        stack.enter_context(
            start.started(gateway, port, set(args.cpus), ready=lambda: start.answers(port, "/ready", {}),
                          log=work / "gateway.log")
        )  # fmt: skip
        yield url, pid, f"http://127.0.0.1:{port}"


def overhead_table(measured: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[str]:
    lines = [
        "| streams | vLLM's TTFT p50, ms | added TTFT, ms | vLLM's ITL, ms | added ITL, ms | pairs |",
        "|---|---|---|---|---|---|",
    ]
    for streams, rounds in measured.items():
        cells = [str(streams)]
        for name, digits in (("ttft", 1), ("itl", 2)):
            of = [one["measures"][name] for one in rounds]
            cells.append(spread([one["a_p50"] for one in of], digits))
            points = [middle(one["difference"]) for one in of]
            low, high = min(p[1] for p in points), max(p[2] for p in points)
            cells.append(
                f"{statistics.median(p[0] for p in points):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
            )
        lines.append("| " + " | ".join([*cells, str(sum(one["paired"] for one in rounds))]) + " |")
    return lines


def saving_table(measured: Mapping[str, Sequence[tuple[Mapping[str, Any], Work]]]) -> list[str]:
    lines = [
        "| | requests served by the engine | tokens generated | tokens delivered | engine CPU, s | duration, s "
        "| tokens/s to clients | TTFT p50, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rounds in measured.items():
        results = [result for result, _ in rounds]
        done = [work for _, work in rounds]
        cpu = [work.cpu_s for work in done if work.cpu_s is not None]
        cells = [
            spread([work.requests for work in done], 0),
            spread([work.generated for work in done], 0),
            spread([one["total_output_tokens"] for one in results], 0),
            spread(cpu, 1) if cpu else "–",
            spread([one["duration"] for one in results], 1),
            spread([one["output_throughput"] for one in results], 1),
            spread([one["median_ttft_ms"] for one in results], 1),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.vllm.real", description=__doc__)
    parser.add_argument("--engine", metavar="URL", help="a running vLLM (default: one is started on this CPU)")
    parser.add_argument(
        "--streams",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[1, 8, 32],
        help="numbers of concurrent streams (default 1,8,32)",
    )
    parser.add_argument("--prompts", type=int, default=40, help="minimum number of pairs per run")
    parser.add_argument("--tokens", type=int, default=24, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "--duplicates", type=float, default=0.75, help="share of requests that repeat an earlier one"
    )
    parser.add_argument("--sets", default="short-chat", help="sets of the corpus")
    parser.add_argument(
        "--cpus",
        type=lambda text: [int(n) for n in text.split(",")],
        default=[0, 1],
        help="CPUs for engine and gateway (default 0,1)",
    )
    args = parser.parse_args()
    overhead: dict[int, list[Mapping[str, Any]]] = {streams: [] for streams in args.streams}
    saved: dict[str, list[tuple[Mapping[str, Any], Work]]] = {"direct": [], "through the gateway": []}
    with tempfile.TemporaryDirectory() as temporary, stage(args, Path(temporary)) as (engine, pid, gateway):
        for n in range(args.rounds):
            for streams in args.streams:
                print(f"round {n + 1}: {streams} streams, paired", file=sys.stderr)
                folder = Path(temporary) / f"ab-{n}-{streams}"
                overhead[streams].append(pairs(engine, gateway, streams, args, 100 * n + streams, folder))
            for m, (name, url) in enumerate((("direct", engine), ("through the gateway", gateway))):
                print(f"round {n + 1}: {args.duplicates:.0%} duplicates, {name}", file=sys.stderr)
                folder = Path(temporary) / f"dup-{n}-{m}"
                saved[name].append(duplicates(url, engine, pid, args, 1000 + n, folder))
    print(f"{machine()}. Answers of {args.tokens} tokens, {args.rounds} rounds.\n")
    print("\n".join(overhead_table(overhead)), "\n")
    print("\n".join(saving_table(saved)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

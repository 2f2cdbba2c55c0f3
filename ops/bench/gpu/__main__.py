"""One command for a machine with a GPU: `python -m ops.bench.gpu`."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final

from ops.bench import subjects as start
from ops.bench.gpu.engine import (
    Program,
    Unusable,
    check_port,
    find_router,
    find_vllm,
    gpu,
    running,
    serve_command,
)
from ops.bench.gpu.measure import EngineEnded, Load, Subject, measure
from ops.bench.gpu.model import SHAPES, write_model
from ops.bench.gpu.plan import Clock, cells
from ops.bench.gpu.report import Report, markdown, write
from ops.bench.peers import HOME
from ops.bench.peers.pypi import ROUND_ROBIN, VLLM_ROUTER, router
from ops.bench.table import machine, ran
from ops.bench.vllm.real import ROOT
from proxy import __version__

WORDS: Final = ROOT / "corpus" / "data" / "words.txt"
START_SHARE: Final = 0.6  # of the budget: the most that the engine may take to start
START_SECONDS: Final = 60.0  # of the gateway, and of the router
REPORT_SECONDS: Final = 10.0  # of the budget, kept for ending the children and writing the report
GATEWAY: Final = ("--max-inflight", "4096", "--queue-limit", "4096")
BIG: Final = {
    "shape": "8b", "streams": [1.0, 8.0, 32.0, 128.0, 512.0], "tokens": 64, "seconds": 5.0, "requests": 192,
    "budget": 480.0,
}  # fmt: skip
SMALL: Final = {
    "shape": "tiny", "streams": [1.0, 2.0, 4.0], "tokens": 8, "seconds": 3.0, "requests": 24, "budget": 240.0,
}  # fmt: skip
CPU_FLAGS: Final = ("--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", "--max-num-seqs", "32")


def _numbers(least: float, most: float) -> Callable[[str], list[float]]:
    def read(text: str) -> list[float]:
        try:
            found = [float(part) for part in text.split(",")]
        except ValueError:
            found = []
        if not found or not all(least <= value <= most for value in found):
            raise argparse.ArgumentTypeError(f"{text!r}: numbers from {least:g} to {most:g}, separated by commas")
        return found

    return read


def _number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        found = _numbers(least, most)(text)
        if len(found) != 1:
            raise argparse.ArgumentTypeError(f"{text!r}: one number from {least:g} to {most:g}")
        return found[0]

    return read


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        found = _number(least, most)(text)
        if found != int(found):
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number from {least} to {most}")
        return int(found)

    return read


def _streams(text: str) -> list[float]:
    found = _numbers(1, 4096)(text)
    if any(value != int(value) for value in found):
        raise argparse.ArgumentTypeError(f"{text!r}: whole numbers of streams")
    return found


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the defaults of --small or of a GPU filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.gpu",
        description="Serves a model of a real shape with dummy weights by stock vLLM, and measures it direct, "
        "through the gateway and through vllm-router: latency, tokens/s, CPU, and what sharing saves. Downloads "
        "nothing. Writes report.md, report.json and report.svg. The most important rows are measured first; those "
        "for which there is no time are named.",
        epilog="exit codes: 0 measured; 1 nothing was measured, or a row failed; 2 wrong usage; 130 ended by "
        "Ctrl-C, with the report written",
    )
    add = parser.add_argument
    add("--vllm", type=Path, metavar="PATH", help="vLLM's script, Python or environment (default: "
        "this Python's, else the one in PATH)")  # fmt: skip
    add("--router", type=Path, metavar="PATH", help="a Python or an environment with vllm-router "
        "(default: the one of `python -m ops.bench.peers`, else vLLM's environment, else this one)")  # fmt: skip
    add("--shape", choices=[*SHAPES], help="shape of the model (default 8b)")
    add("--streams", type=_streams, metavar="N,…", help="concurrent streams (default 1,8,32,128,512)")
    add("--duplicates", type=_numbers(0, 0.95), default=[0.0, 0.2, 0.5], metavar="SHARE,…",
        help="shares of requests that repeat an earlier one (default 0,0.2,0.5)")  # fmt: skip
    add("--tokens", type=_whole(2, 4096), help="tokens of an answer (default 64)")
    add("--seconds", type=_number(1, 120), help="load of one row (default 5)")
    add("--requests", type=_whole(8, 100_000), help="requests of a row with duplicates (default 192)")
    add("--rounds", type=_whole(1, 9), default=3, help="rounds, as far as there is time (default 3)")
    add("--budget", type=_number(20, 36_000), metavar="SECONDS", help="for everything (default 480)")
    add("--engine-flags", type=shlex.split, default=[], metavar="FLAGS", help="further flags of vLLM")
    add("--gateway-flags", type=shlex.split, default=[], metavar="FLAGS", help="further flags of the gateway")
    add("--corpus-set", default="short-chat", metavar="NAME", help="prompts (default short-chat)")
    add("--port", type=_whole(1, 65535), help="port of vLLM on 127.0.0.1 (default: a free one)")
    add("--small", action="store_true", help="in small, for vLLM's CPU build: a tiny model, few streams, float32")
    add("--toy", action="store_true", help="a fake engine instead of vLLM, for a dry run")
    add("--out", type=Path, default=Path("out/gpu"), help="folder of the report (default %(default)s)")
    args = parser.parse_args(arguments)
    for name, value in (SMALL if args.small or args.toy else BIG).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.budget < REPORT_SECONDS + 2 * args.seconds:
        parser.error(f"--budget {args.budget:g} is too short for one row of {args.seconds:g} seconds")
    try:
        (args.out / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out}: {error.strerror}")
    return args


def layout(cpus: Sequence[int]) -> tuple[set[int], set[int], set[int]]:
    """CPUs of the engine, of gateway and router, and of the client. With less than four all share them."""
    ordered = sorted(cpus)
    if len(ordered) < 4:
        return set(ordered), set(ordered), set(ordered)
    clients = 2 if len(ordered) >= 8 else 1
    return set(ordered[1 + clients :]), {ordered[0]}, set(ordered[1 : 1 + clients])


class Run:
    """One run: the engine, the ways to it, the rows, and the report that is written after each cell."""

    def __init__(self, args: argparse.Namespace, began: float) -> None:
        self._args = args
        self._began = began
        self._engine_cpus, self._way_cpus, self._client_cpus = layout([*os.sched_getaffinity(0)])
        self._logs: Path = args.out / "logs"
        self._clock = Clock([], 0, 0)
        self._router: Program | None = None
        on_cpu = args.toy or args.small
        self.report = Report(
            command=ran("ops.bench.gpu"), machine=machine(),
            gpu="" if on_cpu else gpu() or "unknown (no nvidia-smi)",
            vllm="", model="none", subjects={}, missing=[],
            load=f"Unique prompts of the corpus ({args.corpus_set}), answers of {args.tokens} tokens, temperature "
            f"0, {args.seconds:g} s a row; rows with duplicates: {args.requests} requests, "
            f"{self._shared_streams()} at a time.",
            budget=args.budget, took=0.0, ready=0.0, rows=[], dropped=[],
        )  # fmt: skip

    def measure(self) -> None:
        """Everything for which there is time. Raises Unusable if the engine cannot be had."""
        for old in self._logs.glob("*.log"):
            old.unlink()
        os.sched_setaffinity(0, self._client_cpus)
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            engine = self._engine(stack, work)
            try:
                self._rows(engine, self._ways(stack, work, engine), work)
            except EngineEnded as error:
                self.report.ended = str(error)
                print(f"gpu: {error}", file=sys.stderr, flush=True)

    def save(self, *, plot: bool = True) -> None:
        """Write the report as it is now."""
        self.report.took = time.monotonic() - self._began
        self.report.dropped = [cell.name for cell in self._clock.dropped]
        write(self.report, self._args.out, plot=plot)

    def say(self, text: str) -> None:
        print(f"gpu: {time.monotonic() - self._began:4.0f} s: {text}", file=sys.stderr, flush=True)

    def _shared_streams(self) -> int:
        return 4 if self._args.small or self._args.toy else 32

    def _engine(self, stack: ExitStack, work: Path) -> Subject:
        """Start vLLM. Raises Unusable."""
        args, report = self._args, self.report
        port = args.port or start.free_port()
        check_port(port)
        vllm = Program(Path(sys.executable), "(a fake engine)") if args.toy else find_vllm(args.vllm)
        self._router = find_router(args.router, HOME.expanduser(), vllm)
        if args.toy:
            argv = [sys.executable, "-m", "ops.bench.vllm.fake_engine", "--port", str(port), *args.engine_flags]
            command = start.Command(argv, cwd=ROOT)
        else:
            write_model(work / "model", args.shape, WORDS.read_text().split())
            flags = [*(CPU_FLAGS if args.small else ()), *args.engine_flags]
            command = serve_command(vllm, work / "model", port, flags)
            report.model = f"{args.shape} (Llama, dummy weights), flags of vLLM: {shlex.join(flags) or 'none'}"
        report.vllm = vllm.version
        self.say(f"starting vLLM {vllm.version} of {vllm.python}, at most {START_SHARE * args.budget:.0f} s")
        log = self._logs / "vllm.log"
        engine = stack.enter_context(
            running("vLLM", command, port, self._engine_cpus, "/health", log, START_SHARE * args.budget)
        )
        report.ready = engine.seconds
        self.say(f"vLLM is ready after {engine.seconds:.0f} s")
        return Subject("vLLM", f"http://127.0.0.1:{port}", engine.pid, log)

    def _ways(self, stack: ExitStack, work: Path, engine: Subject) -> dict[str, Subject]:
        """Direct, the gateway and the router by name; one that does not start is reported as missing."""
        report, port, router_port = self.report, start.free_port(), start.free_port()
        report.subjects["direct"] = f"vLLM {report.vllm}"
        subjects = {"direct": Subject("direct", engine.url, None, engine.log)}
        flags = [*GATEWAY, *self._args.gateway_flags]
        argv = [sys.executable, "-m", "proxy", "--port", str(port), "--backend", engine.url, *flags]
        words = f"{__version__}, Python {platform.python_version()}, `{shlex.join(flags)}`"
        ways = [("gateway", start.Command(argv, cwd=ROOT), port, "/ready", words)]
        if self._router is None:
            report.missing.append("vllm-router: not present (--router PATH, python -m ops.bench.peers install)")
        else:
            command = router(self._router.python, VLLM_ROUTER, ROUND_ROBIN, router_port, engine.url, work)
            words = f"{self._router.version}, one thread, round robin"
            ways.append(("vllm-router", command, router_port, "/readiness", words))
        for name, command, port, ready, words in ways:
            log = self._logs / f"{name}.log"
            try:
                way = stack.enter_context(running(name, command, port, self._way_cpus, ready, log, START_SECONDS))
            except Unusable as error:
                report.missing.append(f"{name}: {error}")
                self.say(str(error))
                continue
            subjects[name] = Subject(name, f"http://127.0.0.1:{port}", way.pid, log)
            report.subjects[name] = words
            if '"no redis"' in log.read_text("utf-8", "replace"):
                report.subjects[name] += ", without Redis: it shares only what is being generated"
        return subjects

    def _rows(self, engine: Subject, ways: Mapping[str, Subject], work: Path) -> None:
        args, report = self._args, self.report
        load = Load(args.tokens, args.seconds, self._shared_streams(), args.requests, args.corpus_set)
        sharing = [name for name in ways if name != "vllm-router"]
        plan = cells(args.streams, args.duplicates, [*ways], sharing, args.rounds)
        self._clock = clock = Clock(plan, args.seconds, self._began + args.budget - REPORT_SECONDS)
        try:
            measure(
                plan[0], ways["direct"], engine, load, work / "first"
            )  # it compiles and allocates: not counted
            self.say("the first requests, which are not counted, are over")
            while (cell := clock.next(time.monotonic())) is not None:
                for name in cell.subjects:
                    folder = work / f"{len(report.rows)}"
                    row = measure(cell, ways[name], engine, load, folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    report.rows.append(row)
                    clock.took(row.seconds)
                    self.say(f"{cell.name}, {name}: {_words(row.error, row.ttft_p50, row.tokens_per_s)}")
                self.save(plot=False)
        finally:
            clock.stop()


def _words(error: str | None, ttft: float | None, pace: float | None) -> str:
    if error is not None:
        return f"FAILED: {error}"
    first = "too few answers for a TTFT" if ttft is None else f"TTFT p50 {ttft:.1f} ms"
    return f"{first}, {pace or 0:.0f} tokens/s"


def _end(number: int, frame: FrameType | None) -> None:
    """The first signal ends the run; further ones do not disturb the end of the children."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    args = parsed(arguments)
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, _end)
    run = Run(args, began)
    code = 0
    try:
        run.measure()
    except Unusable as error:
        print(f"gpu: {error}", file=sys.stderr)
        run.report.ended = str(error)
    except KeyboardInterrupt:
        run.report.ended = "interrupted"
        code = 130
    run.save()
    print(markdown(run.report))
    run.say(f"report: {args.out}/report.md")
    failed = not run.report.rows or any(row.error for row in run.report.rows)
    return code or (1 if failed or run.report.ended else 0)


if __name__ == "__main__":
    sys.exit(main())

"""One measured part: a fresh server, one tool against it, its CPU time sampled and its errors counted. Linux
only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from ops.bench.account import cpu_ns
from ops.bench.generators.server import Schedule, Served
from ops.bench.generators.tools import ROOT, Homes, Said, Tool
from ops.bench.generators.truth import absolute_ms, compare, cpu_at
from ops.bench.generators.workloads import Workload
from ops.bench.peers.base import Command

HOG: Final = Path(__file__).parent / "hog"
SERVER_CPU: Final = 0
TOOL_CPU: Final = 1
PART_SECONDS: Final = 180.0
WATCH_SECONDS: Final = 0.2


class Part(msgspec.Struct, kw_only=True):
    """One tool under one workload in one round. Errors are absolute errors of TTFT in milliseconds."""

    tool: str
    workload: str
    round: int
    asked: int  # requests
    compared: int  # of these, with a TTFT from the tool and from the server
    failed: int  # as the tool reports
    error_ms: tuple[float, float, float]  # p50, p99, max
    late_share: float  # share of the errors above zero: the tool was late
    truth_ms: float  # median true TTFT
    arrived_per_s: float  # requests, by the server's clock
    events_per_s: float  # tokens, by the server's clock
    cpu_s: float  # process tree, from the arrival of the first request to the last token
    cpu_all_s: float  # from there to the tool's exit, reports included
    censored: float | None  # ours: share of generated events whose time is an interval
    intervals: int  # ours: requests whose TTFT is an interval
    covered: int  # how many of these contain the true value
    verdict: list[str]  # ours: reasons why it reports its run as invalid
    wrong: list[str]  # reasons why this part does not count


class Ended(msgspec.Struct):
    """A tool's finished process: its CPU time over time and in total, in nanoseconds."""

    code: int
    samples: list[tuple[int, int]]  # CLOCK_REALTIME, CPU of the tree
    total_ns: int


@contextmanager
def serving(schedule: Schedule, log: Path, cpu: int) -> Iterator[str]:
    """The server's URL; after the block, `log` has the requests it served."""
    argv = ["taskset", "-c", str(cpu), sys.executable, "-m", "ops.bench.generators.server"]
    child = subprocess.Popen(
        [*argv, msgspec.json.encode(schedule).decode(), str(log)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        port = child.stdout.readline().strip()
        if not port:
            raise RuntimeError("the reference server did not start")
        yield f"http://127.0.0.1:{int(port)}"
        child.stdin.close()
        child.wait(120)  # it shares its CPU with whatever else runs there
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def watched(command: Command, cpus: set[int], env: dict[str, str], log: Path, seconds: float) -> Ended:
    """Run the tool to its end. Raises RuntimeError after `seconds`; its process group is killed in any case."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, sorted(cpus))), *command.argv],
            env={**os.environ, **command.env, **env}, cwd=command.cwd, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    samples: list[tuple[int, int]] = []
    until = time.monotonic() + seconds
    try:
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                total = round((usage.ru_utime + usage.ru_stime) * 1e9)
                return Ended(child.returncode, samples, total)
            if time.monotonic() > until:
                raise RuntimeError(f"not finished after {seconds:g} s")
            samples.append((time.time_ns(), cpu_ns(child.pid)))
            time.sleep(WATCH_SECONDS)
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if child.returncode is None:
            child.wait()


def measure(tool: Tool, workload: Workload, round_: int, homes: Homes, work: Path) -> Part:
    """Measure one part in `work`, an empty folder. Errors are listed in the part's `wrong`, not raised."""
    results, log, said = work / "results", work / "served.json", work / "said.log"
    results.mkdir()
    env = {}
    if workload.hog_ms:
        env = {"PYTHONPATH": str(HOG), "HOG": f"{workload.hog_ms} {tool.sends_in}"}
    cpus = {TOOL_CPU} if workload.one_core else os.sched_getaffinity(0)
    wrong: list[str] = []
    ended, found = Ended(-1, [], 0), Said(reported=[])
    try:
        with serving(workload.schedule, log, SERVER_CPU) as url:
            command = tool.command(homes, results, url, workload, round_)
            ended = watched(command, cpus, env, said, PART_SECONDS)
        found = tool.read(results)
    except (RuntimeError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        wrong.append(f"{type(error).__name__}: {error}; its output ends with: {_end_of(said)}")
    served = msgspec.json.decode(log.read_bytes(), type=list[Served]) if log.exists() else []
    return judged(tool, workload, round_, served, found, ended, wrong)


def judged(
    tool: Tool, workload: Workload, round_: int, served: list[Served], said: Said, ended: Ended, wrong: list[str]
) -> Part:
    found = compare(served, said.reported, tool.key)
    compared = len(found.errors_ns)
    wrong = list(wrong)
    if not wrong and compared < workload.requests:
        wrong.append(f"{compared} of {workload.requests} requests compared, {said.failed} failed")
    if found.by_program:
        wrong.append(f"{found.by_program} requests without a kernel timestamp at the server")
    began = cpu_at(ended.samples, found.began_ns)
    span = max(found.ended_ns - found.began_ns, 1) / 1e9
    return Part(
        tool=tool.name,
        workload=workload.name,
        round=round_,
        asked=workload.requests,
        compared=compared,
        failed=said.failed,
        error_ms=absolute_ms(found.errors_ns),
        late_share=sum(error > 0 for error in found.errors_ns) / max(compared, 1),
        truth_ms=absolute_ms(found.truths_ns)[0],
        arrived_per_s=found.arrived_per_s,
        events_per_s=compared * workload.schedule.tokens / span,
        cpu_s=(cpu_at(ended.samples, found.ended_ns) - began) / 1e9,
        cpu_all_s=(ended.total_ns - began) / 1e9,
        censored=said.censored,
        intervals=found.intervals,
        covered=found.covered,
        verdict=said.verdict,
        wrong=wrong,
    )


def _end_of(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-500:] if log.exists() else "nothing"

"""The comparison of load generators: true times, result files, errors, and one measured part."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import store
from loadgen.record import Event, Kind, Lag, Record, Run
from ops.bench.generators.parts import HOG, Ended, judged, measure
from ops.bench.generators.server import Schedule, Served, Server
from ops.bench.generators.tools import TOOLS, Homes, Said, guidellm_result, vllm_result
from ops.bench.generators.truth import Reported, absolute_ms, compare, cpu_at, truth_ns
from ops.bench.generators.workloads import GROUPS, WARM_UPS, WORKLOADS, Workload, chosen
from ops.bench.peers.base import Command
from tests.kit.missing import TASKSET, needs
from tests.kit.patience import run_process
from tests.loadgen.kit.running import on_our_loop, sent

MS = 1_000_000


def served(number: int, got: int = 0, first: int = 100 * MS, **more: Any) -> Served:
    return Served(f"chatcmpl-{number}", f"v-{number}", got_ns=got, first_ns=first, last_ns=first + 7 * MS, **more)


# The truth, and errors against it


def test_an_error_is_the_tools_ttft_less_the_servers() -> None:
    log = [served(0, got=5 * MS, first=105 * MS), served(1, got=15 * MS, first=117 * MS), served(2)]
    assert truth_ns(log[1]) == 102 * MS
    for key, name in (("request", "v"), ("answer", "chatcmpl")):
        reported = [Reported(f"{name}-1", 103 * MS), Reported(f"{name}-0", 99 * MS), Reported(f"{name}-9", 1)]
        found = compare(log, reported, key)  # type: ignore[arg-type]
        assert (found.errors_ns, found.truths_ns) == ([MS, -MS], [102 * MS, 100 * MS])
        assert (found.began_ns, found.ended_ns, found.unknown) == (5 * MS, 124 * MS, 1)
        assert found.arrived_per_s == 100.0


def test_intervals_are_counted_with_those_that_hold_the_truth() -> None:
    log = [served(number) for number in range(4)]
    reported = [
        Reported("v-0", 130 * MS, 90 * MS),
        Reported("v-1", 99 * MS, 90 * MS),
        Reported("v-2", 130 * MS, 101 * MS),
        Reported("v-3", 130 * MS),
    ]
    found = compare(log, reported, "request")
    assert (found.intervals, found.covered) == (3, 1)


def test_warm_ups_and_requests_without_a_token_are_no_part_of_it() -> None:
    log = [Served("chatcmpl-0", "", got_ns=1, first_ns=2), Served("chatcmpl-1", "v-1", got_ns=1), served(2)]
    found = compare(log, [Reported("", 1), Reported("v-1", 1), Reported("v-2", 100 * MS)], "request")
    assert (found.errors_ns, found.unknown) == ([0], 2)


def test_requests_without_a_kernels_stamp_are_counted() -> None:
    assert compare([served(0, by_kernel=False)], [Reported("v-0", 1)], "request").by_program == 1


def test_nothing_compared_is_all_zeros() -> None:
    found = compare([], [], "answer")
    assert (found.errors_ns, found.arrived_per_s, absolute_ms(found.errors_ns)) == ([], 0.0, (0.0, 0.0, 0.0))


def test_errors_lose_their_sign_in_their_quantiles() -> None:
    assert absolute_ms([-3 * MS, MS, 2 * MS]) == (2.0, 3.0, 3.0)


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), min_size=2, max_size=20), st.floats(0, 1))
def test_cpu_time_between_samples_grows_as_they_do(steps: list[tuple[int, int]], share: float) -> None:
    samples = [(0, 0)]
    for after, used in steps:
        samples.append((samples[-1][0] + after, samples[-1][1] + used))
    for (begin, low), (end, high) in itertools.pairwise(samples):
        assert cpu_at(samples, begin) == low
        assert low <= cpu_at(samples, begin + int((end - begin) * share)) <= high
    assert cpu_at(samples, samples[-1][0] + 5) == samples[-1][1]
    assert cpu_at([], 5) == 0


# What the tools' files say


def test_vllms_details_are_seconds_in_the_order_of_its_request_ids() -> None:
    said = vllm_result({"ttfts": [0.1015, 0.0, 0.2], "errors": ["", "Traceback", ""]})
    assert said.reported == [Reported("v-0", 101_500_000), Reported("v-2", 200_000_000)]
    assert said.failed == 1


def test_guidellms_requests_are_milliseconds_by_the_answers_id() -> None:
    def request(answer: str, ttft: float | None) -> dict[str, Any]:
        return {"response_id": answer, "time_to_first_token_ms": ttft, "output": "x"}

    lists = {"successful": [request("chatcmpl-1", 103.5), request("chatcmpl-0", None)], "errored": [{}]}
    said = guidellm_result({"benchmarks": [{"requests": {**lists, "incomplete": None}}]})
    assert said.reported == [Reported("chatcmpl-1", 103_500_000)]
    assert said.failed == 1


def test_ours_are_the_first_generated_event_from_the_send_and_its_interval(tmp_path: Path) -> None:
    folder = tmp_path / "20260101-000000"
    folder.mkdir()
    exact = [Event(5, 5, 6, Kind.ROLE), Event(90, 90, 95, Kind.CONTENT), Event(99, 95, 99, Kind.CONTENT)]
    merged = [Event(90, 60, 95, Kind.REASONING)]
    records = [
        Record(index=0, id="a", prompt="p", due_ns=0, sent_ns=10, events=exact),
        Record(index=1, id="b", prompt="p", due_ns=0, sent_ns=20, events=merged),
        Record(index=2, id="c", prompt="p", due_ns=0, sent_ns=20, failure="truncated", events=merged),
        Record(index=-1, id="w", prompt="p", due_ns=0, sent_ns=20, events=merged, warmup=True),
    ]
    with (folder / store.EVENTS).open("wb") as file:
        for record in records:
            store.append(file, record)
    lag = Lag(censored=0.25)
    store.write_run(
        folder,
        Run(date="", label="", command=[], config={}, targets={}, model="m", endpoint="", lag=lag, invalid=["no"]),
    )
    said = TOOLS["ours"].read(tmp_path)
    assert said.reported == [Reported("a", 80), Reported("b", 70, 40)]
    assert (said.failed, said.censored, said.verdict) == (1, 0.25, ["no"])


@pytest.mark.parametrize("name", list(TOOLS))
@pytest.mark.parametrize("workload", ["hog20", "requests400"])
def test_every_tool_is_asked_for_the_same(name: str, workload: str, tmp_path: Path) -> None:
    homes = Homes(tmp_path / "bench", tmp_path / "vllm")
    part = WORKLOADS[workload]
    line = " ".join(TOOLS[name].command(homes, tmp_path, "http://127.0.0.1:9", part, 3).argv)
    assert "http://127.0.0.1:9" in line
    assert str(part.requests) in line.split() or f"count={part.requests}" in line
    rate = {"guidellm": "kind=poisson,rate=40", "aiperf": "--request-rate 40 --request-rate-mode poisson"}.get(
        name, "--request-rate 40 --burstiness 1"
    )
    streams = {"guidellm": "kind=concurrent,streams=16", "aiperf": "--concurrency 16"}.get(
        name, "--max-concurrency 16"
    )
    assert (rate if part.rate else streams) in line
    assert (streams if part.rate else rate) not in line
    if name != "guidellm":  # which does not count connecting
        flag = "--warmup-request-count" if name == "aiperf" else "--num-warmups"
        assert f"{flag} {WARM_UPS}" in line


def test_guidellm_has_one_worker_whose_loop_is_the_hogged_one(tmp_path: Path) -> None:
    command = TOOLS["guidellm"].command(Homes(tmp_path, tmp_path), tmp_path, "http://x", WORKLOADS["idle"], 0)
    assert command.env["GUIDELLM__MAX_WORKER_PROCESSES"] == "1"
    assert {name: tool.sends_in for name, tool in TOOLS.items()} == {
        "ours": "main",
        "ours-user": "main",
        "vllm": "main",
        "guidellm": "child",
        "aiperf": "child",
    }


def test_workloads_are_chosen_by_name_and_by_group() -> None:
    assert [workload.name for workload in chosen("hog5,idle,hog5")] == ["hog5", "idle"]
    assert {workload.name for workload in chosen(",".join(GROUPS))} == set(WORKLOADS)
    with pytest.raises(ValueError, match="unknown workload 'x': choose from hogged"):
        chosen("x")
    assert all((workload.rate is None) != (workload.concurrency is None) for workload in WORKLOADS.values())


# The server and the hog


@on_our_loop
async def test_the_server_keeps_to_its_schedule_and_says_when_it_had_what() -> None:
    server = Server(Schedule(tokens=3, ttft_ms=2.0, itl_ms=1.0))
    records = await sent(f"http://127.0.0.1:{server.port}", times=2)
    server.close()
    assert [record.failure for record in records] == [None, None]
    assert [record.completion_tokens for record in records] == [3, 3]
    assert [event.kind for event in records[0].events if event.kind is Kind.CONTENT] == [Kind.CONTENT] * 3
    assert [one.request for one in server.log] == [record.id for record in records]
    for one in server.log:
        assert one.by_kernel
        assert one.got_ns + 2 * MS <= one.first_ns <= one.last_ns
    found = compare(server.log, [Reported(record.id, _ttft(record)) for record in records], "request")
    # Sent before the server had it, received after the server sent it: what ours reports can only be more.
    assert all(error >= 0 for error in found.errors_ns)


def _ttft(record: Record) -> int:
    first = next(event for event in record.events if event.kind is Kind.CONTENT)
    assert record.sent_ns is not None
    return first.at_ns - record.sent_ns


@on_our_loop
async def test_the_server_names_its_model() -> None:
    server = Server(Schedule())
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for _ in range(2):
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        assert [model["id"] for model in msgspec.json.decode(body)["data"]] == ["known"]
    writer.close()
    server.close()


PROGRAM = """
import asyncio, time
async def main():
    began = time.perf_counter()
    for _ in range(4):
        await asyncio.sleep(0)
    return time.perf_counter() - began
print(asyncio.run(main()))
"""


def hogged(hog: str) -> float:
    """Seconds that four iterations of another program's event loop took."""
    env = {**os.environ, "PYTHONPATH": str(HOG), "HOG": hog}
    said = run_process([sys.executable, "-c", PROGRAM], env=env, capture_output=True, check=True, seconds=50)
    return float(said.stdout)


def test_the_hog_takes_its_time_in_every_turn_of_any_programs_loop() -> None:
    assert hogged("20 main") >= 0.06


def test_the_hog_leaves_alone_the_loops_of_the_other_process() -> None:
    hogged("60000 child")  # it would not end in time


# A part


class Broken:
    """A tool that fails, or whose result is unreadable."""

    name = "broken"
    sends_in = "main"
    key = "request"

    def __init__(self, *argv: str) -> None:
        self._argv = argv

    def install(self, homes: Homes) -> None: ...

    def version(self, homes: Homes) -> str:
        return "1"

    def command(self, homes: Homes, work: Path, url: str, workload: Workload, seed: int) -> Command:
        return Command(self._argv)

    def read(self, work: Path) -> Said:
        raise KeyError("ttfts")


SMALL = Workload(
    name="idle", group="hogged", words="", schedule=Schedule(2, 1.0, 1.0), requests=5, rate=200.0, one_core=True
)
taskset = needs(shutil.which("taskset"), "taskset", TASKSET)
two_cpus = needs(
    (os.cpu_count() or 1) > 1, "a second CPU, for the tool", f"python -m pytest {__file__}, where nproc is 2"
)


@taskset
@two_cpus
def test_a_part_of_ours_is_compared_request_by_request(tmp_path: Path) -> None:
    part = measure(TOOLS["ours"], SMALL, 0, Homes(tmp_path, tmp_path), tmp_path)
    assert (part.wrong, part.compared, part.failed) == ([], 5, 0)
    assert part.truth_ms >= 1.0
    assert part.cpu_all_s > 0


@taskset
@two_cpus
def test_a_tool_that_fails_is_a_part_that_does_not_count(tmp_path: Path) -> None:
    part = measure(
        Broken(sys.executable, "-c", "print('no such flag')"),  # type: ignore[arg-type]
        SMALL, 0, Homes(tmp_path, tmp_path), tmp_path,
    )  # fmt: skip
    assert part.compared == 0
    assert "ttfts" in part.wrong[0]
    assert "no such flag" in part.wrong[0]


def test_a_request_that_is_missing_makes_the_part_wrong() -> None:
    log = [served(number, got=number * 1000 * MS, first=(number * 1000 + 100) * MS) for number in range(2)]
    said = Said(reported=[Reported("v-0", 101 * MS), Reported("v-1", 99 * MS)], failed=3)
    ended = Ended(0, [(0, 100), (1107 * MS, 300)], 1_000)
    part = judged(TOOLS["vllm"], SMALL, 1, log, said, ended, [])
    assert part.wrong == ["2 of 5 requests compared, 3 failed"]
    assert (part.error_ms, part.late_share, part.arrived_per_s) == ((1.0, 1.0, 1.0), 0.5, 1.0)
    assert (part.cpu_s, part.cpu_all_s) == (200 / 1e9, 900 / 1e9)

"""Sends the most expensive requests known, one at a time, and reports the longest time for which each blocks the
gateway's event loop, as seen by a process that polls /health. `--tree` measures another checkout for
comparison."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from ops.bench import subjects as start
from ops.bench.hostile.requests import CASES, CHAT, Case, Group, rules

SECONDS: Final = 150.0  # in total; the cases left then are listed as not run
PATIENCE: Final = 45.0  # for one answer
EVERY: Final = 0.003  # seconds between two polls
TICKS: Final = os.sysconf("SC_CLK_TCK")
FRAMES: Final = 60_000
WIDE: Final = 4_000_000  # bytes of a frame


# -- the poller, a separate process -------------------------------------------------------------------


def poll(port: int) -> None:
    """Poll /health; print when each poll began and how long it took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    print("up", flush=True)
    while True:
        began = time.monotonic()
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except OSError:
            connection.close()
        took = time.monotonic() - began
        print(f"{began:.4f} {took:.4f}", flush=True)
        time.sleep(EVERY)


class Poller:
    """Collects the output of a polling process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._polls: list[tuple[float, float]] = []
        assert process.stdout is not None
        process.stdout.readline()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            began, _, took = line.partition(" ")
            self._polls.append((float(began), float(took)))

    def longest(self, since: float) -> float:
        """Seconds of the longest poll since then. Waits for one poll that began after this call."""
        now = time.monotonic()
        while time.monotonic() < now + PATIENCE:
            if self._polls and self._polls[-1][0] > now:
                break
            time.sleep(EVERY)
        return max((took for began, took in self._polls if began + took > since), default=0.0)


# -- the engine, a separate process ----------------------------------------------------------------------


def chunk(index: int, content: str) -> bytes:
    delta = '"role":"assistant","content":""' if index == 0 else f'"content":{json.dumps(content)}'
    return (
        'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m1","choices":'
        f'[{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":null}}]}}\n\n'
    ).encode()


def stream(kind: str, count: int = FRAMES) -> Iterator[bytes]:
    """Frames as vLLM 0.32 writes them: many short ones, or a few wide ones."""
    yield chunk(0, "")
    if kind == "wide":
        for _ in range(4):
            yield chunk(1, "hello world, " * (WIDE // 13))
    else:
        for n in range(count // 100):
            yield b"".join(chunk(n * 100 + i + 1, " word") for i in range(100))
    last = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m1",'
    yield last + b'"choices":[{"index":0,"delta":{"content":"."},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    yield (
        last + b'"choices":[],"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4},'
        b'"system_fingerprint":"vllm-0.32.0-x"}\n\ndata: [DONE]\n\n'
    )


def answer(sock: socket.socket) -> None:
    """Answer every request on a connection, by the model that its first bytes name."""
    file = sock.makefile("rb")
    while line := file.readline():
        length = 0
        while (header := file.readline()) not in (b"\r\n", b""):
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = file.read(length)
        kind = next((kind for kind in ("wide", "frames", "whole") if kind.encode() in body[:64]), "")
        if kind in ("wide", "frames") and b'"stream":true' in body[:256]:
            sock.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            for n, data in enumerate(stream(kind)):
                sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))
                if n == 0:
                    time.sleep(0.3)  # time for another reader to join
            sock.sendall(b"0\r\n\r\n")
            continue
        if b"GET /v1/models" in line:
            names = ("m1", "wide", "frames", "whole")
            said = json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        else:
            text = "hello world, " * ((40 << 20) // 13) if kind == "whole" else "hi"
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            said = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]})
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n\r\n"
        sock.sendall((head + said).encode())


def engine(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            sock, _ = server.accept()
            threading.Thread(target=answer, args=(sock,), daemon=True).start()


Run = Callable[[int], str]  # given the gateway's port; returns the status


# -- the runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gateway:
    port: int
    pid: int
    poller: Poller


@contextmanager
def gateway(tree: str, group: Group, engine_port: int, work: Path, *, answers: bool = False) -> Iterator[Gateway]:
    port = start.free_port()
    options = ["--backend", f"http://127.0.0.1:{engine_port}", "--port", str(port), "--redis", "off"]
    if group != "plain":
        path = work / f"{group}.txt"
        path.write_text(rules(group))
        options += ["--deny-file", str(path)]
    if answers:
        options += ["--deny-answers"]
    command = start.Command([sys.executable, "-m", "proxy", *options], env={"PYTHONPATH": tree}, cwd=Path(tree))
    cpus = set(range(os.cpu_count() or 1))
    ready = lambda: start.answers(port, "/health", {})  # noqa: E731
    with ExitStack() as stack:
        ours = stack.enter_context(start.started(command, port, cpus, ready=ready, log=work / "gateway.log"))
        process = subprocess.Popen(
            [sys.executable, "-m", "ops.bench.hostile.blocking", "--poll", str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Gateway(port, ours.pid, Poller(process))


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def post(port: int, path: str, body: bytes, began: threading.Event | None = None) -> str:
    """The status, or the name of the exception."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        while response.read1(1 << 20):
            if began is not None:
                began.set()
        return str(response.status)
    except (OSError, http.client.HTTPException) as e:
        return type(e).__name__
    finally:
        connection.close()


def folded(port: int) -> str:
    """A long stream, and a second reader that requests it as one JSON body."""
    body = b'{"model":"frames"%b,"temperature":0,"messages":[{"role":"user","content":"x"}]}'
    began, statuses = threading.Event(), []
    first = threading.Thread(
        target=lambda: statuses.append(post(port, CHAT, body % b',"stream":true', began)), daemon=True
    )
    first.start()
    began.wait(PATIENCE)
    statuses.append(post(port, CHAT, body % b""))
    first.join(PATIENCE)
    return ",".join(statuses)


def streamed(model: bytes) -> Callable[[int], str]:
    body = b'{"model":"%b","stream":true,"messages":[{"role":"user","content":"x"}]}'
    return lambda port: post(port, CHAT, body % model)


def headers(port: int) -> str:
    """The largest headers that are accepted, in sixty pipelined requests."""
    lines = "".join(f"x-{n}: {'v' * 200}\r\n" for n in range(60))
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall((f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{lines}\r\n" * 60).encode())
        return sock.recv(12).decode()[9:]


OTHERS: Final[tuple[tuple[str, Group, bool, Run], ...]] = (
    ("headers", "plain", False, headers),
    (f"a stream of {FRAMES} frames", "plain", False, streamed(b"frames")),
    ("four frames of 4 MB", "plain", False, streamed(b"wide")),
    (f"{FRAMES} frames folded into one body", "plain", False, folded),
    ("answers checked: four frames of 4 MB", "few", True, streamed(b"wide")),
    (f"answers checked: {FRAMES} frames", "few", True, streamed(b"frames")),
    ("answers checked: a body of 40 MiB", "few", True,
     lambda port: post(port, CHAT, b'{"model":"whole","messages":[]}')),
)  # fmt: skip


def sent(case: Case) -> tuple[int, Run]:
    body = case.build(case.size)
    return len(body), lambda port: post(port, case.path, body)


def measure(name: str, size: int, run: Run, at: Gateway) -> float:
    before, began = cpu(at.pid), time.monotonic()
    status = run(at.port)
    took = time.monotonic() - began
    longest = at.poller.longest(began)
    spent = cpu(at.pid) - before
    print(f"| {name} | {size} | {status} | {longest * 1000:.0f} | {spent:.2f} | {took:.2f} |", flush=True)
    return longest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.hostile.blocking", description=__doc__)
    parser.add_argument(
        "--tree", default=os.getcwd(), help="source tree of the gateway to measure (default: this one)"
    )
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="total time limit")
    parser.add_argument("--poll", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--engine", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.poll:
        poll(args.poll)
    if args.engine:
        engine(args.engine)
    ends = time.monotonic() + args.seconds
    print("| input | bytes | status | loop blocked, ms | gateway CPU, s | total, s |")
    print("|---|---|---|---|---|---|", flush=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = start.free_port()
        process = subprocess.Popen([sys.executable, "-m", "ops.bench.hostile.blocking", "--engine", str(port)])
        stack.callback(process.wait)
        stack.callback(process.kill)
        runs: dict[tuple[Group, bool], list[tuple[str, Callable[[], tuple[int, Run]]]]] = {}
        for case in CASES:
            runs.setdefault((case.group, False), []).append((case.name, partial(sent, case)))
        for name, group, checked, run in OTHERS:
            runs.setdefault((group, checked), []).append((name, partial(lambda run: (0, run), run)))
        longest = 0.0
        for (group, checked), cases in runs.items():
            cases = [case for case in cases if args.only in case[0]]
            if not cases:
                continue
            with gateway(args.tree, group, port, work, answers=checked) as at:
                for name, made in cases:
                    if time.monotonic() > ends:
                        print(f"| {name} | not run: time is up | | | | |", flush=True)
                        continue
                    longest = max(longest, measure(name, *made(), at))
    print(f"\nThe loop was blocked for {longest * 1000:.0f} ms at most.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The servers that fixtures demand: each a vLLM with a gateway in front of it, kept for the next equal demand. It
answers over a Unix socket, one JSON line each way; a server is in use while that connection is open. Every process
ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.error import URLError
from urllib.request import urlopen

from ops.bench.subjects import free_port
from ops.vllm_tests.demand import Demand, Impossible

LISTENS: Final = re.compile(rb"gateway at (http://\S+)")
GATEWAY_SECONDS: Final = 60.0
LOOK: Final = 0.2
END_SECONDS: Final = 30.0


class StartError(Exception):
    """A server did not start; the text has the cause and the end of its output."""


class Command(Protocol):
    def __call__(self, demand: Demand, port: int) -> tuple[Sequence[str], Mapping[str, str]]:
        """The command and the environment of an engine on this port. Raises Impossible."""


class Pair:
    """An engine and its gateway."""

    def __init__(self, number: int, logs: Path, patience: float) -> None:
        self.urls: dict[str, str] = {}
        self._logs = {name: logs / f"{number:02}-{name}.log" for name in ("engine", "gateway")}
        self._patience = patience
        self._running: list[subprocess.Popen[bytes]] = []

    def start(
        self, words: Sequence[str], environment: Mapping[str, str], port: int, gateway: Sequence[str]
    ) -> None:
        """Raises StartError; then all its processes have ended."""
        try:
            engine = self._begin("engine", words, environment)
            url = f"http://127.0.0.1:{port}"
            self._wait("engine", engine, self._patience, lambda: answers(f"{url}/health"))
            command = [sys.executable, "-m", "proxy", "--backend", url, "--port", "0", *gateway]
            ours = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
            child = self._begin("gateway", command, ours)
            self._wait("gateway", child, GATEWAY_SECONDS, lambda: self._ready(url))
        except StartError:
            self.close()
            raise

    def _begin(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self._logs[name].open("wb") as log:
            log.write(f"{' '.join(words)}\n".encode())
            log.flush()
            tied = [sys.executable, "-m", "proxy.embedded.launch", str(os.getpid()), *words]
            child = subprocess.Popen(
                tied if name == "gateway" else words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._running.append(child)
        return child

    def _wait(self, name: str, child: subprocess.Popen[bytes], seconds: float, fact: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not fact():
            if child.poll() is not None or time.monotonic() > until:
                tail = [line[:160] for line in self._logs[name].read_text(errors="replace").splitlines()[-12:]]
                how = (
                    f"exited with {child.returncode}"
                    if child.returncode is not None
                    else f"is not ready after {seconds:.0f} s"
                )
                raise StartError(f"the {name} {how}: {self._logs[name]}\n" + "\n".join(tail))
            time.sleep(LOOK)

    def _ready(self, engine: str) -> bool:
        said = LISTENS.search(self._logs["gateway"].read_bytes())
        if said is None or not answers(f"{said[1].decode()}/ready"):
            return False
        self.urls = {"engine": engine, "gateway": said[1].decode()}
        return True

    def close(self) -> None:
        for child in reversed(self._running):
            child.terminate()
        for child in self._running:
            try:
                child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._running.clear()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310 - a URL of this stand
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


class Stand:
    """At most `most` pairs, or as many as are in use at once. To make room, the least recently used of the others
    is ended."""

    def __init__(
        self, folder: Path, command: Command, *, most: int, patience: float, gateway: Sequence[str]
    ) -> None:
        self.socket = folder / "stand"
        self._logs = folder / "servers"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._command = command
        self._most = most
        self._patience = patience
        self._gateway = tuple(gateway)
        self._pairs: dict[object, Pair] = {}
        self._failed: dict[object, str] = {}
        self._used = Counter[object]()
        self._thread = ThreadPoolExecutor(1, "stand")  # a gateway ends with the thread that started it
        self._count = 0

    @contextlib.contextmanager
    def serving(self, given: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        """The address that serves a demand, in use within the block, or why there is none."""
        key, reply = self._thread.submit(self._take, given).result()
        try:
            yield reply
        finally:
            self._thread.submit(self._used.subtract, [key]).result()

    def _take(self, given: Mapping[str, Any]) -> tuple[object, dict[str, str]]:
        try:
            key, pair = self._serve(Demand.read(given))
        except Impossible as why:
            return None, {"impossible": str(why)}
        except StartError as error:
            return None, {"error": str(error)}
        self._used[key] += 1
        return key, pair.urls

    def _serve(self, demand: Demand) -> tuple[object, Pair]:
        port = free_port()
        words, environment = self._command(demand, port)
        key = (tuple(word for word in words if word != str(port)), demand.env)
        if key in self._failed:
            raise StartError(self._failed[key])
        pair = self._pairs.pop(key, None)
        if pair is None:
            idle = [each for each in self._pairs if self._used[each] <= 0]
            for each in idle[: max(0, len(self._pairs) - self._most + 1)]:
                self._pairs.pop(each).close()
            self._count += 1
            pair = Pair(self._count, self._logs, self._patience)
            forward = ["--forward-authorization"] if demand.asks_for_key else []
            try:
                pair.start(words, environment, port, [*forward, *self._gateway])
            except StartError as error:
                self._failed[key] = str(error)
                raise
        self._pairs[key] = pair
        return key, pair

    def close(self) -> None:
        self._thread.submit(self._end).result()

    def _end(self) -> None:
        while self._pairs:
            self._pairs.popitem()[1].close()


@contextlib.contextmanager
def listening(stand: Stand) -> Iterator[None]:
    """The stand answers at its socket while the block runs; then all processes end."""

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with stand.serving(json.loads(self.rfile.readline())) as reply:
                self.wfile.write(json.dumps(reply).encode() + b"\n")
                self.rfile.read()  # until the asker has closed it

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    stand.socket.unlink(missing_ok=True)
    with Server(str(stand.socket), Asked) as server:
        thread = threading.Thread(target=server.serve_forever, name="stand")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            stand.close()
            stand.socket.unlink(missing_ok=True)

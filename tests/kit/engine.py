"""Owns the fake engine: a server that misbehaves at byte level, one turn at a time, as a test says.
Must not know the proxy. A real engine cannot be made to do these things on demand; this one can.
Called by tests (`async with Engine() as engine`), and by hand: `python -m tests.kit.engine --port 8000`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType

from tests.kit.engine_turn import PATIENCE, ClientGone, Connection, Turn
from tests.kit.engine_wire import Request, models_body
from tests.kit.leaks import settle
from tests.kit.patience import patience

__all__ = ["ClientGone", "Engine", "Script", "Turn", "full_backlog"]

Script = Callable[[Turn], Awaitable[None]]
POLLS = (
    "/v1/models",
    "/health",
    "/version",
    "/metrics",
    "/count",
)  # answered by the engine itself, unless a test takes them
GENERATIONS = ("/v1/chat/completions", "/v1/completions")


async def answer_probe(turn: Turn) -> None:
    """As vLLM 0.32 answers everything else here."""
    if turn.method != "POST":
        await turn.respond(404, {"detail": "Not Found"})
    elif turn.wants_stream:
        await turn.send("one")
        await turn.finish()
    else:
        await turn.answer("one")


class Engine:
    """Scripted (`await engine.next_request()`), or automatic (`Engine(script=...)`, `engine.auto(...)`).

    `requests` holds every request but the polls; `generations` counts those to the two generating
    endpoints; `polls` counts the answered GETs by path. `silent = True` accepts and never answers.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        models: Sequence[str] = ("m1",),
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.models = list(models)
        self.requests: list[Turn] = []
        self.polls: Counter[str] = Counter()
        self.probes: list[Turn] = []  # the gateway's own questions, which `on_probe` answers
        self.on_probe: Script = answer_probe
        self.silent = False
        self.version = "0.32.0"
        self.root: str | None = None  # of its models; None: their own names
        self.metrics: bytes | None = None  # None: 404
        self.accepted = 0  # connections, ever
        self.host = host
        self.port = port
        self._script = script
        self._taken: set[str] = set()
        self._queue: asyncio.Queue[Turn] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[Exception] = []
        self._placeholder: socket.socket | None = None
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return (
            f"<Engine {self.url}: {len(self.requests)} requests, {self._queue.qsize()} untaken, "
            f"{self.open_connections} open connections, {sum(self.polls.values())} polls>"
        )

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def generations(self) -> int:
        return sum(turn.method == "POST" and turn.path.startswith(GENERATIONS) for turn in self.requests)

    # What a test says

    async def next_request(self) -> Turn:
        try:
            async with patience(PATIENCE):
                return await self._queue.get()
        except TimeoutError:
            raise AssertionError(f"{self!r}: no request came within {PATIENCE} s") from None

    async def until(self, fact: Callable[[], bool]) -> None:
        """Waits for a fact about this engine; looks again at every connection, request, poll and close."""
        try:
            async with patience(PATIENCE):
                while not fact():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{self!r}: it did not come to be within {PATIENCE} s") from None

    def auto(self, script: Script | None) -> None:
        """Answer every request from now on by this script; None hands them to `next_request` again."""
        self._script = script

    def take(self, path: str) -> None:
        """Hand this poll (`/v1/models`, `/health`) to the test instead of answering it."""
        self._taken.add(path)

    async def listen(self) -> None:
        """Listen, on the same port as ever."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._accept, self.host, self.port, reuse_address=True)

    def stop_listening(self) -> None:
        """Refuse new connections. The open ones live on; see `drop_connections`."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def drop_connections(self, *, reset: bool = False) -> None:
        """Close every open connection at once, as a killed engine would."""
        for connection in list(self._connections):
            if reset:
                connection.reset()
            else:
                connection.transport.abort()
            await asyncio.shield(connection.lost)

    # Life

    async def __aenter__(self) -> Engine:
        # A bound socket that never listens keeps the port ours while we refuse connections on it.
        self._placeholder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.bind((self.host, self.port))
        self.port = self._placeholder.getsockname()[1]
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_listening()
        await settle()  # what the loop had already accepted becomes a connection
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.drop_connections()
        if self._placeholder is not None:
            self._placeholder.close()
        assert not self._tasks, f"handlers left running: {self._tasks}"
        assert not self._connections, f"connections left open: {self._connections}"
        if self._errors and error is None:
            raise ExceptionGroup(f"{self!r}: its own side failed", self._errors)
        if error is not None:  # the test's own failure comes first
            for own in self._errors:
                error.add_note(f"and the engine's own side failed: {own!r}")

    def _accept(self) -> Connection:
        self.accepted += 1
        connection = Connection(self._connections, self.accepted, self._dispatch)
        self._changed.set()
        connection.lost.add_done_callback(lambda _: self._lose(connection))
        return connection

    def _lose(self, connection: Connection) -> None:
        self._changed.set()
        if connection.error is not None:
            self._errors.append(connection.error)

    def _dispatch(self, connection: Connection, request: Request) -> None:
        path = request.path.partition("?")[0]
        poll = request.method == "GET" and path in POLLS and path not in self._taken
        probe = request.headers.get("x-request-id", "").startswith("gateway-probe-")
        turn = connection.turn = Turn(0 if poll or probe else len(self.requests) + 1, connection, request)
        if probe:
            self.probes.append(turn)
        elif poll:
            self.polls[path] += 1
        else:
            self.requests.append(turn)
        self._changed.set()
        if probe:
            self._run(turn, self.on_probe)
        elif poll and not self.silent:
            self._run(turn, self._answer_poll)
        elif not poll and (self._script is None or self.silent):
            self._queue.put_nowait(turn)
        elif not poll and self._script is not None:
            self._run(turn, self._script)

    async def _answer_poll(self, turn: Turn) -> None:
        path = turn.path.partition("?")[0]
        if path == "/v1/models":
            await turn.respond(200, models_body(self.models, self.root))
        elif path == "/version":
            await turn.respond(200, {"version": self.version})
        elif path == "/metrics" and self.metrics is None:
            await turn.respond(404)
        elif path == "/metrics":
            await turn.respond(200, self.metrics)
        elif path == "/count":
            await turn.respond(200, {"generations": self.generations})
        else:
            await turn.respond(200)

    def _run(self, turn: Turn, script: Script) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(turn, script))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, turn: Turn, script: Script) -> None:
        try:
            await script(turn)
        except ClientGone:
            pass  # a client may leave whenever it likes
        except Exception as error:  # noqa: BLE001  raised again by __aexit__, in the test
            self._errors.append(error)
            await turn.drop(reset=True)


@contextlib.contextmanager
def full_backlog() -> Iterator[str]:
    """A URL that neither accepts nor refuses: SYNs go unanswered, so connecting hangs (Linux)."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        host, port = server.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield f"http://{host}:{port}"


async def _serve(options: argparse.Namespace) -> None:
    from tests.kit.engine_scripts import timed_script

    script = timed_script(
        ttft=options.ttft_ms / 1e3, itl=options.itl_ms / 1e3, tokens=options.tokens, seed=options.seed
    )
    async with Engine(script, models=options.model or ["m1"], host=options.host, port=options.port) as engine:
        print(f"fake engine on {engine.url}, models {engine.models}; GET /count", flush=True)
        await asyncio.get_running_loop().create_future()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kit.engine", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", action="append", help="a served model's name; repeatable")
    parser.add_argument("--ttft-ms", type=float, default=20.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()

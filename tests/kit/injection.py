"""Owns fault injection: a mixed load whose answers are all known, in which one function of the gateway raises.
Must not know which functions there are: they are taken from a traced run of the same load.
Called by `test_contained.py`, and by hand: `python -m tests.kit.injection [PART OF A NAME]`."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

import proxy
from proxy.app import App
from tests.kit.client import Connection, IncompleteBody, NoAnswer, call, post_json, streaming
from tests.kit.engine import Engine, Script, Turn
from tests.kit.engine_scripts import echo_script, text_of
from tests.kit.engine_wire import error_body
from tests.kit.patience import patience
from tests.kit.running import until

HOME: Final = str(Path(proxy.__file__).parent) + "/"
CHAT: Final = "/v1/chat/completions"
TOKENS: Final = 6
BOUND: Final = 8.0  # seconds for any one request of the load, and for everything to be given back after it
HEADERS: Final = (("x-request-timeout", "20"), ("x-gateway-priority", "normal"))


class Injected(Exception):
    """What an injected function raises."""


def name_of(code: CodeType) -> str:
    """`flights.scheduler.Scheduler._turn`: the module and the function's full name."""
    return code.co_filename.removeprefix(HOME).removesuffix(".py").replace("/", ".") + "." + code.co_qualname


def ours(code: CodeType) -> bool:
    """Of the gateway, but for its wiring, whose properties this load reads itself."""
    return code.co_filename.startswith(HOME) and code.co_filename != HOME + "app.py"


@dataclass
class Problem:
    """What went wrong with the requests that had nothing to do with the fault, or what was left behind."""

    function: str
    at: int  # which of its calls raised
    what: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.function} (call {self.at}): " + "; ".join(self.what[:6])


def script() -> Script:
    """Echoes; a prompt with `flaky` in it is answered 503 the first time, one with `poison` always 500."""
    echo = echo_script(TOKENS)
    seen: set[bytes] = set()

    async def answer(turn: Turn) -> None:
        body = turn.body
        if b"poison" in body:
            await turn.respond(500, error_body("no", status=500))
        elif b"flaky" in body and body not in seen:
            seen.add(body)
            await turn.respond(503, error_body("busy", status=503))
        else:
            await echo(turn)

    return answer


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return {"model": "m1", "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS} | more


# -- one request, and whether its answer is right -----------------------------------------------------


async def whole(url: str, body: dict[str, Any]) -> str:
    """Empty where the answer is right."""
    answer = await post_json(url, CHAT, body, HEADERS)
    if answer.status != 200:
        return _typed(answer.status, answer.body)
    content = answer.json()["choices"][0]["message"]["content"]
    return "" if _told(body, content) else f"WRONG {content!r}"


async def stream(url: str, body: dict[str, Any]) -> str:
    async with streaming(url, CHAT, body, HEADERS) as connection:
        head = await connection.read_head()
        if head.status != 200:
            return _typed(head.status, b"".join([piece async for piece in connection.chunks()]))
        content, finish, done, error = "", None, False, None
        async for event in connection.events():
            if event.is_done:
                done = True
                continue
            value = event.json()
            if "error" in value:
                error = value["error"]["code"]
                continue
            for choice in value["choices"]:
                content += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
        if done and error is None:
            return "" if finish and _told(body, content) else f"WRONG {content!r} {finish}"
        return f"failed {error}" if error else "WRONG: neither error nor [DONE]"


def _told(body: dict[str, Any], content: str) -> bool:
    """Sampled twins that were merged get a choice each."""
    return content in [
        "".join(text_of(body, TOKENS, choice=n)) for n in range(16 if body.get("temperature") else 1)
    ]


def _typed(status: int, body: bytes) -> str:
    try:
        return f"failed {status} {json.loads(body)['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return f"WRONG: {status} {body[:80]!r}"


async def embed(url: str, texts: Sequence[str]) -> str:
    answer = await post_json(url, "/v1/embeddings", {"model": "m1", "input": list(texts)}, HEADERS)
    if answer.status != 200:
        return _typed(answer.status, answer.body)
    data = answer.json()["data"]
    right = [datum["index"] for datum in data] == list(range(len(texts))) and all(d["embedding"] for d in data)
    same = {text: datum["embedding"] for text, datum in zip(texts, data, strict=False)}
    return (
        "" if right and all(same[text] == d["embedding"] for text, d in zip(texts, data, strict=True)) else "WRONG"
    )


async def expect(url: str, method: str, path: str, body: object, *statuses: int) -> str:
    data = json.dumps(body).encode() if body is not None else b""
    kind = [("content-type", "application/json")] if data else []
    answer = await call(url, method, path, data, kind)
    return "" if answer.status in statuses else _typed(answer.status, answer.body)


async def leaves(url: str, body: dict[str, Any]) -> str:
    """A client that goes away in the middle; nothing is expected of it."""
    connection = await Connection.open(url)
    data = json.dumps(body).encode()
    await connection.request("POST", CHAT, data, [("content-type", "application/json")])
    await asyncio.sleep(0)
    await connection.abort()
    return ""


Request = tuple[str, Callable[[], Awaitable[str]]]  # whose share a failure is, and the request


def load(url: str, number: int) -> list[Request]:
    """A round: every request has a group; requests of one group share an engine's answer, or a choice of it."""

    def at(name: str) -> str:
        return f"{name} {number}"

    cold, hot = {"temperature": 0}, {"temperature": 1}
    live = {"stream": True}
    usage = {"stream_options": {"include_usage": True}}
    requests: list[Request] = []

    def add(group: str, request: Callable[[], Awaitable[str]], times: int = 1) -> None:
        requests.extend([(group, request)] * times)

    add("twins", lambda: stream(url, chat(at("twins"), **cold, **live)), 3)
    add("usage", lambda: stream(url, chat(at("usage"), **cold, **live, **usage)), 2)
    add("bodies", lambda: whole(url, chat(at("bodies"), **cold)), 2)
    add("stored", lambda: whole(url, chat("stored", **cold)))
    add("kept", lambda: stream(url, chat("kept", **cold, **live)))
    add("samples", lambda: stream(url, chat(at("samples"), **hot, **live)), 3)
    add("sampled bodies", lambda: whole(url, chat(at("sampled"), **hot)), 3)
    for n in range(3):
        add(f"own {n}", lambda n=n: stream(url, chat(at(f"own {n}"), **hot, **live)))  # type: ignore[misc]
    add("flaky", lambda: whole(url, chat(at("flaky"), **cold)))
    add("poison", lambda: expect(url, "POST", CHAT, chat(at("poison"), **cold), 500))
    add("vectors", lambda: embed(url, [at("a"), "known", at("b")]))
    add("vectors", lambda: embed(url, [at("b"), at("c"), at("c")]))
    add("passed", lambda: expect(url, "POST", "/tokenize", {"prompt": "x"}, 404))
    add("models", lambda: expect(url, "GET", "/v1/models", None, 200))
    add("metrics", lambda: expect(url, "GET", "/metrics", None, 200))
    add("bad", lambda: expect(url, "POST", CHAT, {"messages": 5}, 400))
    add("leaver", lambda: leaves(url, chat(at("leaver"), **cold, **live)))
    return requests


async def bounded(request: Callable[[], Awaitable[str]]) -> str:
    try:
        async with patience(BOUND):
            return await request()
    except TimeoutError:
        return "HUNG"
    except (IncompleteBody, NoAnswer, ConnectionError, asyncio.IncompleteReadError) as e:
        return f"cut {type(e).__name__}"


async def run_round(url: str, number: int) -> list[tuple[str, str]]:
    """Each request's group, and what was not right about its answer."""
    requests = load(url, number)
    random.Random(number).shuffle(requests)
    results = await asyncio.gather(*(bounded(request) for _, request in requests))
    return [(group, result) for (group, _), result in zip(requests, results, strict=True)]


# -- what is left ------------------------------------------------------------------------------------


def held(app: App) -> dict[str, int]:
    """What requests under way hold; empty where everything has been given back."""
    queue = app.scheduler.queue
    counts = {
        "flights": len(app.group),
        "places": sum(backend.inflight for backend in app.backends.all),
        "queued": len(queue),
        "journeys": app.scheduler.flying,
        "embeddings": 0 if app.embedder is None else len(app.embedder),
        "permits": 0 if app.admission is None else app.admission.limiter.local.streams,
    }
    return {name: count for name, count in counts.items() if count}


async def settled(app: App, before: dict[str, int] | None = None, seconds: float = 2.0) -> dict[str, int]:
    """What is still held, and was not `before`, once everything should have been given back."""
    left = {"not looked at": 1}

    def none() -> bool:
        nonlocal left
        try:
            left = {name: n for name, n in held(app).items() if n > (before or {}).get(name, 0)}
        except Injected:
            left = {"looked at": 1}  # it was this look that met the fault
        return not left

    await asyncio.sleep(0)
    with suppress(TimeoutError):
        async with patience(seconds):
            await until(none)
    return left


# -- injection ----------------------------------------------------------------------------------------


class Tracer:
    """Counts the calls of each function of the gateway, and makes one of them raise, once.

    It owns its hook until the hook is off. CPython 3.11 borrows the hook for each call and may collect garbage
    before the call (ceval.c, `call_trace`: it allocates the frame object). Where a finalizer calls the target,
    the hook raises and is freed, and the call reaches another object: `'traceback' object is not callable`.
    """

    def __init__(self, target: CodeType | None = None, at: int = 1) -> None:
        self.calls: Counter[CodeType] = Counter()
        self.raised = False
        self._target = target
        self._at = at
        self._hook = self._count if target is None else self._inject

    def __enter__(self) -> Tracer:
        sys.setprofile(self._hook)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and ours(frame.f_code):
            self.calls[frame.f_code] += 1

    def _inject(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code is self._target:
            self._at -= 1
            if self._at == 0:
                self.raised = True
                raise Injected(name_of(frame.f_code))  # CPython then takes the hook off: it raises once


class Swap:
    """Makes one call of a function raise, as a `Tracer` does, by other code in it: a hook on every call of a round
    takes up to half of the CPU time."""

    NAME: Final = "_injected"

    def __init__(self, function: FunctionType, at: int) -> None:
        self.raised = False
        self._function, self._code = function, function.__code__
        self._original = FunctionType(
            self._code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        self._original.__kwdefaults__ = function.__kwdefaults__
        self._at = at

    def __enter__(self) -> Swap:
        def called(*args: Any, **named: Any) -> Any:
            return _injected(*args, **named)  # type: ignore[name-defined]  # noqa: F821 - a name of its module's

        self._function.__globals__[self.NAME] = self._call
        self._function.__code__ = called.__code__.replace(co_freevars=self._code.co_freevars)
        return self

    def __exit__(self, *exc: object) -> None:
        self._function.__code__ = self._code
        del self._function.__globals__[self.NAME]

    def _call(self, *args: Any, **named: Any) -> Any:
        self._at -= 1
        if self._at == 0:
            self.raised = True
            raise Injected(name_of(self._code))
        return self._original(*args, **named)


PAUSES: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@cache
def plain() -> dict[CodeType, FunctionType]:
    """The functions and methods of the gateway that no other function makes and that run without a pause: each of
    their calls is one call of their code."""
    found: list[Any] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("proxy."):
            for value in list(vars(module).values()):
                found += [value, *vars(value).values()] if isinstance(value, type) else [value]
    for value in list(found):
        found += [getattr(value, part, None) for part in ("__func__", "__wrapped__", "fget", "fset", "func")]
    functions = [value for value in found if isinstance(value, FunctionType) and ours(value.__code__)]
    return {function.__code__: function for function in functions if not function.__code__.co_flags & PAUSES}


def injecting(target: CodeType, at: int) -> Swap | Tracer:
    function = plain().get(target)
    return Tracer(target, at) if function is None else Swap(function, at)


async def traced(app: App, rounds: int) -> Counter[CodeType]:
    """How often each function of the gateway is called in a round, at least in one of so many."""
    calls: Counter[CodeType] = Counter()
    url = app.url
    for number in range(rounds):
        with Tracer() as tracer:
            results = await run_round(url, number)
            left = await settled(app)
        wrong = [f"{group}: {result}" for group, result in results if result]
        assert not wrong, f"without any fault: {wrong}"
        assert not left, f"without any fault: {left}"
        calls |= tracer.calls
    return calls


async def inject(app: App, number: int, target: CodeType, at: int) -> Problem | None:
    """A round in which one call of a function raises. The fault may cost one group its answers, no more."""
    problem = Problem(name_of(target), at)
    before, url = held(app), app.url  # what an earlier fault left behind is not this one's
    with injecting(target, at) as hook:
        results = await run_round(url, number)
        left = await settled(app, before)
    failed = {
        group for group, result in results if result and (group, result) != ("flaky", "failed 503 no_backend")
    }
    problem.what += [f"{group}: {result}" for group, result in results if result.startswith(("WRONG", "HUNG"))]
    if len(failed) > 1:
        problem.what.append(f"more than one answer failed: {[f'{g}: {r}' for g, r in results if r]}")
    if left:
        problem.what.append(f"left behind: {left}")
    if not hook.raised and not problem.what:
        return None
    return problem if problem.what else None


def engine() -> Engine:
    return Engine(script(), models=["m1"])


SETTINGS: Final[dict[str, Any]] = {
    "redis_timeout_ms": 100,  # what a fault costs where a look-up is lost
    "max_inflight": 4,
    "rate_limit_rps": 10_000.0,
    "rate_limit_streams": 1000,
    "rate_limit_tokens_per_minute": 10**8,
    "queue_limit": 200,
    "retry_backoff_ms": 1.0,
    "refresh_seconds": 3600.0,  # a health check would meet a round's fault by chance, and that is another group's
    "breaker_failures": 0,
    "breaker_rate": 0.0,
}
"""So little room that requests queue, twins merge and arrays fill; limits that count and refuse nobody."""


EXEMPT: Final = {
    "telemetry.containment.contained": "runs the clean-up steps; its own exceptions cannot be contained",
    "flights.embeddings.faults.EmbedFaults.safely": "the same, for embeddings",
    "flights.exchange.Exchange._safely": "the border of its timers",
    "server.listener.listener.ClientConnection.connection_made": (
        "the border to the loop; what it does is in `_welcome` and `start`"
    ),
    "server.listener.listener.Listener.connection_made": (
        "the border to aiohttp, of one connection; all it does is in `_welcome`"
    ),
}
"""Functions that cannot be made to raise, each with its reason."""


async def main(parts: Sequence[str]) -> int:
    from tests.kit.redis_server import redis_server
    from tests.kit.running import gateway

    found = 0
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with redis_server() as path, engine() as one, gateway(one, redis=f"unix://{path}", **SETTINGS) as app:
        calls = await traced(app, 3)
        named = {code: name_of(code) for code in calls if name_of(code) not in EXEMPT}
        codes = sorted((code for code in named if any(p in named[code] for p in parts or [""])), key=name_of)
        print(f"{len(codes)} functions")
        number = 1000
        for code in codes:
            for at in sorted({1, 1 + calls[code] // 2}):
                number += 1
                began = time.monotonic()
                problem = await inject(app, number, code, at)
                if problem is not None:
                    found += 1
                    print(f"{problem}  [{time.monotonic() - began:.1f} s]", flush=True)
    return found


if __name__ == "__main__":
    raise SystemExit(1 if asyncio.run(main(sys.argv[1:])) else 0)

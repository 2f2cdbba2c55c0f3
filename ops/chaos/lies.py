"""Wrong answers of an engine: the truthful answer as steps on the wire, and each lie as a change of them. Every
lie can be detected: none is only another text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

from ops.chaos.wire import Json, dumps

End = Literal["close", "reset"]
Step = bytes | float | End | Literal["gather"]
"""Bytes to write, seconds to wait, how the connection ends, or a wait for other requests."""

SSE: Final = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
LAST: Final = b"0\r\n\r\n"
DONE: Final = b"data: [DONE]\n\n"
ODD: Final[tuple[Any, ...]] = (2**64, 1e30, -1, 1.5, "many", [], float("-inf"))
IMPOSTOR: Final = "IMPOSTOR"
HTML: Final = b"<h1>500</h1>"
ERROR: Final[Json] = {"error": {"message": "chaos", "type": "InternalServerError", "param": None, "code": 500}}


@dataclass(slots=True)
class Answer:
    """The truthful answer."""

    stream: bool
    frames: list[Json]  # of a stream
    body: Json  # of a JSON answer
    gap: float = 0.0  # seconds before each frame, or between the request and the whole body
    per_pause: int = 1  # frames sent together: one per choice


def plain(body: bytes, status: str = "200 OK", kind: str = "application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-type: {kind}\r\ncontent-length: {size}\r\n\r\n"
    return head.encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(frame: object) -> bytes:
    return b"data: " + dumps(frame) + b"\n\n"


def honest(answer: Answer) -> list[Step]:
    if not answer.stream:
        return [answer.gap, plain(dumps(answer.body))]
    return [*_begun(answer), chunk(DONE) + LAST]


def _begun(answer: Answer, share: float = 1.0) -> list[Step]:
    """The stream's head and a share of its frames."""
    steps: list[Step] = [SSE]
    for at, frame in enumerate(answer.frames[: int(len(answer.frames) * share)]):
        if at % answer.per_pause == 0:
            steps.append(answer.gap)
        steps.append(chunk(event(frame)))
    return steps


def _impostor(answer: Answer) -> bytes:
    """A response without a request."""
    said = {"role": "assistant", "content": IMPOSTOR}
    choice = {"index": 0, "message": said, "text": IMPOSTOR, "logprobs": None, "finish_reason": "stop"}
    return plain(
        dumps({"id": IMPOSTOR, "object": "chat.completion", "created": 1, "model": "m1", "choices": [choice]})
    )


def _finish(reason: str | None) -> Callable[[Answer, Random], list[Step]]:
    """Half the text, with this finish_reason in every choice; None: no finish."""

    def lie(answer: Answer, _: Random) -> list[Step]:
        changed = copy.deepcopy(answer)
        if answer.stream:
            half = changed.frames[: max(1, len(changed.frames) // 2)]
            last = copy.deepcopy(next(frame for frame in reversed(half) if frame["choices"]))
            ends = []
            for index in range(answer.per_pause):
                end = {**last["choices"][0], "index": index, "finish_reason": reason}
                said: Json = {"delta": {}} if "delta" in end else {"text": ""}
                end |= said
                ends.append({**last, "choices": [end]})
            changed.frames = [*half, *(ends if reason else [])]
        for choice in changed.body.get("choices", ()):
            choice["finish_reason"] = reason
            if "message" in choice:
                choice["message"]["content"] = choice["message"]["content"][:3]
            else:
                choice["text"] = choice["text"][:3]
        return honest(changed)

    return lie


def _cut(end: End) -> Callable[[Answer, Random], list[Step]]:
    def lie(answer: Answer, pick: Random) -> list[Step]:
        if answer.stream:
            return [*_begun(answer, pick.random()), end]
        body = dumps(answer.body)
        return [answer.gap, plain(body[: len(body) // 2], length=len(body)), 0.01, end]

    return lie


def _error_under_200(answer: Answer, pick: Random) -> list[Step]:
    if answer.stream:
        return [*_begun(answer, pick.random()), chunk(event(ERROR)), chunk(DONE) + LAST]
    return [plain(dumps(ERROR))]


def _choices_null(answer: Answer, _: Random) -> list[Step]:
    if answer.stream:
        frame = {**answer.frames[0], "choices": None}
        return [*_begun(answer, 0.5), chunk(event(frame)), chunk(DONE) + LAST]
    return [plain(dumps({**answer.body, "choices": None}))]


def _choice_missing(answer: Answer, _: Random) -> list[Step]:
    """The last choice is missing."""
    changed = copy.deepcopy(answer)
    last = answer.per_pause - 1
    changed.frames = [f for f in changed.frames if not any(choice["index"] == last for choice in f["choices"])]
    changed.body["choices"] = changed.body["choices"][:-1] if answer.body else []
    return honest(changed)


def _usage_odd(answer: Answer, pick: Random) -> list[Step]:
    changed = copy.deepcopy(answer)
    number = pick.choice(ODD)
    for part in (changed.body, *changed.frames):
        if part.get("usage"):
            part["usage"] = dict.fromkeys(part["usage"], number)
    return honest(changed)


def _after_done(answer: Answer, _: Random) -> list[Step]:
    if not answer.stream:
        return honest(answer)
    said = {"index": 0, "delta": {"content": IMPOSTOR}, "text": IMPOSTOR, "finish_reason": None}
    late = {**answer.frames[0], "choices": [said]}
    return [*_begun(answer), chunk(DONE), chunk(event(late)), chunk(DONE) + LAST]


def _bad_chunk(size: bytes) -> Callable[[Answer, Random], list[Step]]:
    def lie(answer: Answer, pick: Random) -> list[Step]:
        if answer.stream:
            return [*_begun(answer, pick.random()), size + b"\r\nhello\r\n", 0.05, "close"]
        head = SSE.replace(b"text/event-stream; charset=utf-8", b"application/json")
        return [head, size + b"\r\n" + dumps(answer.body)[:20], 0.05, "close"]

    return lie


def _longer(answer: Answer, pick: Random) -> list[Step]:
    """The body is shorter than its content-length."""
    if answer.stream:
        return _cut("close")(answer, pick)
    body = dumps(answer.body)
    return [answer.gap, plain(body, length=len(body) + 100), 0.05, "close"]


def _shorter(answer: Answer, pick: Random) -> list[Step]:
    """The body is longer than its content-length: the rest looks like the next response."""
    if answer.stream:
        return [*honest(answer), chunk(event(answer.frames[0]))]
    body = dumps(answer.body)
    return [answer.gap, plain(body, length=len(body) - 20)]


def _second_answer(pause: float) -> Callable[[Answer, Random], list[Step]]:
    def lie(answer: Answer, _: Random) -> list[Step]:
        steps = honest(answer)
        if pause:
            return [*steps, pause, _impostor(answer)]
        assert isinstance(steps[-1], bytes)
        return [*steps[:-1], steps[-1] + _impostor(answer)]

    return lie


def _infinity(answer: Answer, _: Random) -> list[Step]:
    changed = copy.deepcopy(answer)
    odd = float("-inf")
    for datum in changed.body.get("data", ()):
        datum["embedding"][0] = odd
    for part in (changed.body, *changed.frames):
        for choice in part.get("choices", ()):
            choice["logprobs"] = {"content": [{"token": "x", "logprob": odd, "top_logprobs": []}]}
    return honest(changed)


def _no_length(answer: Answer, pick: Random) -> list[Step]:
    """Half a body that ends with the connection."""
    if answer.stream:
        return _half_frame(answer, pick)
    body = dumps(answer.body)
    return [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + body[: len(body) // 2], 0.01, "close"]


def _half_frame(answer: Answer, pick: Random) -> list[Step]:
    """A regular end of the response in the middle of a frame."""
    frame = event(answer.frames[-1])
    return [*_begun(answer, pick.random()), chunk(frame[: len(frame) // 2]) + LAST]


def _no_done(answer: Answer, pick: Random) -> list[Step]:
    if not answer.stream:
        return _cut("close")(answer, pick)
    return [*_begun(answer, 0.7), LAST]


def _done_alone(answer: Answer, _: Random) -> list[Step]:
    return [SSE, chunk(DONE) + LAST] if answer.stream else [plain(b"{}")]


def _status(line: str, kind: str, body: bytes) -> Callable[[Answer, Random], list[Step]]:
    return lambda answer, _: [plain(body, line, kind)]


def _interim(answer: Answer, _: Random) -> list[Step]:
    """Interim responses before the response, which HTTP allows."""
    return [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n", *honest(answer)]


def _odd_chunks(answer: Answer, _: Random) -> list[Step]:
    """Zeros and extensions in chunk sizes, which HTTP allows."""
    return [
        b"000" + step.replace(b"\r\n", b";x=y\r\n", 1) if type(step) is bytes and at else step
        for at, step in enumerate(honest(answer))
    ] if answer.stream else honest(answer)  # fmt: skip


def _null_vector(answer: Answer, _: Random) -> list[Step]:
    changed = copy.deepcopy(answer)
    changed.body["data"][-1]["embedding"] = None
    return honest(changed)


def _vector_missing(answer: Answer, _: Random) -> list[Step]:
    changed = copy.deepcopy(answer)
    changed.body["data"].pop()
    return honest(changed)


def _index_doubled(answer: Answer, _: Random) -> list[Step]:
    changed = copy.deepcopy(answer)
    for datum in changed.body["data"]:
        datum["index"] = 0
    return honest(changed)


Lie = Callable[[Answer, Random], list[Step]]
LIES: Final[dict[str, Lie]] = {
    "finish abort": _finish("abort"),
    "finish error": _finish("error"),
    "finish none": _finish(None),
    "truncated": _cut("close"),
    "reset": _cut("reset"),
    "error under 200": _error_under_200,
    "choices null": _choices_null,
    "choice missing": _choice_missing,
    "usage odd": _usage_odd,
    "frames after done": _after_done,
    "chunk size zz": _bad_chunk(b"zz"),
    "chunk size huge": _bad_chunk(b"ffffffffffffffff"),
    "chunk size negative": _bad_chunk(b"-5"),
    "length too long": _longer,
    "length too short": _shorter,
    "second answer": _second_answer(0.02),
    "second answer at once": _second_answer(0.0),
    "infinity": _infinity,
    "half without length": _no_length,
    "half a frame": _half_frame,
    "no done": _no_done,
    "done alone": _done_alone,
    "status 500": _status("500 Internal Server Error", "application/json", dumps(ERROR)),
    "status 503": _status("503 Service Unavailable", "application/json", dumps(ERROR)),
    "status 500 in HTML": _status("500 Internal Server Error", "text/html", HTML),
    "interim answers": _interim,
    "odd chunks": _odd_chunks,
    "null vector": _null_vector,
    "vector missing": _vector_missing,
    "index doubled": _index_doubled,
}
VECTORS: Final = frozenset({"null vector", "vector missing", "index doubled"})
"""For embeddings only."""
GENERATED: Final = frozenset(
    {"finish abort", "finish error", "finish none", "choices null", "choice missing", "done alone"}
)
"""For generated texts only."""
STREAMED: Final = frozenset({"frames after done", "half a frame", "no done", "odd chunks"})


def fits(name: str, *, stream: bool, vectors: bool) -> bool:
    """Whether this lie is possible in such an answer."""
    if vectors:
        return name not in GENERATED and name not in STREAMED
    return name not in VECTORS and (stream or name not in STREAMED)

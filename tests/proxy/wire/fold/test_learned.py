"""Shapes learned from one stream and one body: what is carried into folded bodies, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from proxy.wire.fold.folding import Folded, Unfoldable, fold, shape_seen
from proxy.wire.fold.learned import Unproven
from proxy.wire.fold.shape import VLLM, Shape
from tests.golden import load

Json = dict[str, Any]
Change = Callable[[Json], object]
DONE = b"data: [DONE]\n\n"
PAIRS = ["chat-greedy", "completion"]


def endpoint(name: str) -> Folded:
    return "chat" if "chat" in name else "completions"


def stream(name: str, change: Change = lambda chunk: None) -> list[bytes]:
    frames = []
    for frame in load(f"{name}-stream-usage").frames()[:-1]:
        chunk = json.loads(frame.removeprefix(b"data: "))
        unnamed(chunk)
        change(chunk)
        frames.append(b"data: %b\n\n" % json.dumps(chunk).encode())
    return [*frames, DONE]


def body(name: str, change: Change = lambda answer: None) -> bytes:
    answer = load(name).json()
    unnamed(answer)
    change(answer)
    return json.dumps(answer).encode()


def unnamed(answer: Json) -> None:
    """Of an engine that is no known one: a member that all its bodies have is missing."""
    answer.pop("system_fingerprint", None)
    answer.pop("ec_transfer_params", None)


def nameless(answer: bytes) -> str:
    return json.dumps(json.loads(answer) | {"id": "", "created": 0})


def put(name: str, value: Any) -> Change:
    return lambda answer: answer.update({name: value})


def in_choices(name: str, value: Any) -> Change:
    return lambda answer: [choice.update({name: value}) for choice in answer["choices"]]


CARRIED: dict[str, tuple[Change, Change]] = {
    "nothing new": (lambda chunk: None, lambda answer: None),
    "null in both": (put("new", None), put("new", None)),
    "null in bodies alone": (lambda chunk: None, put("new", None)),
    "null in streams alone": (put("new", None), lambda answer: None),
    "constant in both": (put("new", {"a": [1]}), put("new", {"a": [1]})),
    "constant in streams alone": (put("new", "x"), lambda answer: None),
    "null in choices": (in_choices("new", None), in_choices("new", None)),
    "constant in choices": (in_choices("new", 7), in_choices("new", 7)),
}


@pytest.mark.parametrize("change", CARRIED)
@pytest.mark.parametrize("name", PAIRS)
def test_a_new_member_that_is_null_or_constant_is_carried_into_bodies_that_have_it(name: str, change: str) -> None:
    of_chunk, of_body = CARRIED[change]
    frames, answer = stream(name, of_chunk), body(name, of_body)
    shape = shape_seen(frames, answer, endpoint(name))
    assert shape.dialect == "learned"
    assert nameless(fold(frames, endpoint(name), shape=shape)) == nameless(answer)


REFUSED: dict[str, tuple[Change, Change]] = {
    "a number that only bodies have": (lambda chunk: None, put("took", 12)),
    "a list that only bodies have": (lambda chunk: None, put("new", [1])),
    "otherwise in bodies": (put("new", "a"), put("new", "b")),
    "counted on in the stream": (lambda chunk: chunk.update(new=json.dumps(chunk)), lambda answer: None),
    "another text": (lambda chunk: None, lambda answer: answer["choices"][0].update(finish_reason="stop")),
    "another count": (lambda chunk: None, lambda answer: answer["usage"].update(total_tokens=1)),
    "a member in place of another": (lambda chunk: None, lambda answer: answer.pop("usage")),
    "ids of another kind": (lambda chunk: None, put("id", "body-1")),
    "far too many": (lambda chunk: chunk.update({f"n{n}": None for n in range(100)}), lambda answer: None),
    "far too long": (put("new", "x" * 2000), put("new", "x" * 2000)),
}


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_not_learned(name: str, change: str) -> None:
    of_chunk, of_body = REFUSED[change]
    with pytest.raises(Unfoldable):
        shape_seen(stream(name, of_chunk), body(name, of_body), endpoint(name))


@pytest.mark.parametrize("name", PAIRS)
def test_a_text_that_only_bodies_have_is_constant_where_a_second_one_has_it_too(name: str) -> None:
    frames, answer = stream(name), body(name, put("engine", "acme"))
    with pytest.raises(Unproven):
        shape_seen(frames, answer, endpoint(name))
    shape = shape_seen(frames, answer, endpoint(name), body(name, put("engine", "acme")))
    assert nameless(fold(frames, endpoint(name), shape=shape)) == nameless(answer)
    with pytest.raises(Unfoldable, match="no constant"):
        shape_seen(frames, answer, endpoint(name), body(name, put("engine", "other")))


@pytest.mark.parametrize("version", ["", "0.33/"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("named", [None, "mine"])
def test_vllm_with_another_fingerprint_or_none_is_known_as_the_version_that_it_is(
    version: str, name: str, named: str | None
) -> None:
    def rename(data: bytes) -> bytes:
        text = b"null" if named is None else b'"%b"' % named.encode()
        return re.sub(rb'(?<="system_fingerprint":)"[^"]*"', text, data)

    frames = [rename(frame) for frame in load(f"{version}{name}-stream-usage").frames()]
    answer = rename(load(version + name).body)
    shape = shape_seen(frames, answer, endpoint(name))
    assert (shape.dialect, shape.version) == ("vllm", f"vllm-{version.strip('/') or '0.32'}.")
    with_logprobs = "chat-logprobs" if name.startswith("chat") else "completion-list"
    frames = [rename(frame) for frame in load(f"{version}{with_logprobs}-stream-usage").frames()]
    folded = fold(frames, endpoint(name), shape=shape)
    assert nameless(folded) == nameless(rename(load(version + with_logprobs).body))
    with pytest.raises(Unfoldable):
        fold(frames, endpoint(name), shape=Shape("vllm", version=shape.version, fingerprint="another"))


def test_a_known_version_counts_only_where_its_answers_are_so() -> None:
    frames, answer = load("chat-greedy-stream-usage").frames(), load("chat-greedy").json()
    assert shape_seen(frames, json.dumps(answer).encode(), "chat") == VLLM
    lied = shape_seen(frames, json.dumps(answer | {"new": None}).encode(), "chat")
    assert lied.dialect == "learned"
    with pytest.raises(Unfoldable):
        shape_seen(frames, json.dumps(answer | {"new": 1}).encode(), "chat")


def changed(name: str, change: Change) -> list[bytes]:
    return stream(name, change)


LATER: dict[str, Change] = {
    "a new member": put("later", None),
    "a constant that is not": put("new", 8),
    "logprobs": in_choices("logprobs", {"content": []}),
    "two choices": lambda chunk: (
        [choice.update(index=len(str(chunk)) % 2) for choice in chunk["choices"]] and None
    ),
    "another kind of chunk": put("object", "x"),
    "a finish that was not seen": in_choices("finish_reason", "content_filter"),
    "no usage": lambda chunk: chunk.pop("usage", None),
    "a count that bodies do not have": lambda chunk: "usage" in chunk and chunk["usage"].update(more=1),
}


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("name", PAIRS)
def test_a_later_stream_that_is_otherwise_does_not_fold(name: str, change: str) -> None:
    shape = shape_seen(stream(name, put("new", 7)), body(name, put("new", 7)), endpoint(name))

    def later(chunk: Json) -> None:
        put("new", 7)(chunk)
        LATER[change](chunk)

    with pytest.raises(Unfoldable):
        fold(stream(name, later), endpoint(name), shape=shape)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"choices":[]}',
        b'{"choices":[{}],"usage":{}}',
        b'{"id":"a\xff"}',
        b"[" * 5000,
    ],
)
def test_a_body_that_is_no_answer_teaches_nothing(answer: bytes) -> None:
    with pytest.raises(Unfoldable):
        shape_seen(stream("chat-greedy"), answer, "chat")


@pytest.mark.parametrize(
    "frames", [[], [DONE], [b"data: {}\n\n", DONE], [b"data: [\n\n", DONE], [b"data: 1\n\n", DONE]]
)
def test_a_stream_that_is_no_answer_teaches_nothing(frames: list[bytes]) -> None:
    with pytest.raises(Unfoldable):
        shape_seen(frames, body("chat-greedy"), "chat")

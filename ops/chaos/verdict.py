"""Judges one answer: exact, a truthful error, left on purpose, wrong, or hung; with the reason. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ops.chaos.lies import HTML, IMPOSTOR
from ops.chaos.wire import CLIENT, NONCE, Ask, prompt_tokens, tokenized, vector, words

Kind = Literal["exact", "error", "left", "wrong", "hung"]
End = Literal["whole", "cut", "garbled", "left", "hung"]
"""How the answer ended: complete, before its end, with invalid framing, by our disconnect, or not at all."""
USAGE: Final = "usage"
"""The prefix of reasons that concern usage only."""
_PARTS: Final = ("content", "text")


@dataclass(slots=True)
class Answer:
    """What a client received, complete or not."""

    status: int = 0  # 0: no head was received
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    end: End = "cut"


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Kind
    why: str = ""
    nonces: tuple[str, ...] = ()  # the samples in it, complete or not


def judge(ask: Ask, answer: Answer) -> Verdict:
    """The verdict. Usage is checked last: if usage is the reason, everything else is right."""
    nonces = tuple(NONCE.findall(answer.body.decode("utf-8", "replace"))) if ask.sampled else ()
    wrong = _wrong(ask, answer)
    if wrong:
        return Verdict("wrong", wrong, nonces)
    if answer.end == "left":
        return Verdict("left", "", nonces)
    if answer.end == "hung":
        return Verdict("hung", f"status {answer.status}, {len(answer.body)} bytes", nonces)
    if answer.status != 200:
        return Verdict("error", _code(answer) if answer.status else "cut before a head")
    if answer.end == "cut":
        return Verdict("error", "cut in the answer", nonces)
    if ask.stream and b"[DONE]" not in answer.body:
        return Verdict("error", f"error frame {_frame_code(answer.body)}", nonces)
    return Verdict("exact", answer.headers.get("x-gateway-cache", ""), nonces)


def _code(answer: Answer) -> str:
    if answer.body == HTML:
        return f"{answer.status} in the engine's HTML"
    return f"{answer.status} {json.loads(answer.body)['error'].get('code')}" if answer.end == "whole" else "cut"


def _frame_code(body: bytes) -> str:
    return str(_events(body)[-1]["error"].get("code"))


def _wrong(ask: Ask, answer: Answer) -> str:
    """Why the answer is wrong; empty if it is not."""
    if answer.end == "garbled":
        return "framing that is not HTTP"
    if IMPOSTOR.encode() in answer.body:
        return "what nobody asked for"
    found = _said(ask, answer)
    if not found or found.startswith(USAGE):
        named = CLIENT.findall(answer.body)
        return "another client's id" if any(name != ask.request_id.encode() for name in named) else found
    return found


def _said(ask: Ask, answer: Answer) -> str:
    """The same for its content."""
    if answer.status not in (0, 200):
        return _error_shape(answer) if answer.end == "whole" else ""
    try:
        if ask.stream and answer.status:
            return _stream(ask, answer)
        return _whole(ask, answer.body) if answer.end == "whole" else ""
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
        return f"not the shape of an answer ({type(e).__name__})"


def _error_shape(answer: Answer) -> str:
    try:
        error = json.loads(answer.body)["error"]
        sound = bool(error["message"]) and {"type", "code"} <= error.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = answer.body == HTML  # the engine's own page, passed through
    return "" if sound else f"{answer.status} without an OpenAI error"


def _events(body: bytes) -> list[Any]:
    """The data of the complete events; `[DONE]` as a string."""
    events = body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
    data = [line[5:].strip() for event in events for line in event.split(b"\n") if line.startswith(b"data:")]
    return ["[DONE]" if one == b"[DONE]" else json.loads(one) for one in data]


def _stream(ask: Ask, answer: Answer) -> str:
    events = _events(answer.body)
    done = "[DONE]" in events
    if done and events[-1] != "[DONE]":
        return "something after [DONE]"
    if events.count("[DONE]") > 1:
        return "[DONE] twice"
    frames = [event for event in events if event != "[DONE]"]
    errors = [at for at, frame in enumerate(frames) if "error" in frame]
    if errors and (done or errors != [len(frames) - 1]):
        return "[DONE] after an error" if done else "frames after an error"
    frames = frames[: errors[0]] if errors else frames
    texts, ends, usage, ids = _collected(ask, frames)
    if len(ids) > 1:
        return "frames of different answers"
    whole = done and answer.end == "whole"
    found = _texts(ask, texts, whole=whole)
    if found:
        return found
    if answer.end == "whole" and not done and not errors:
        return "ended with neither [DONE] nor an error"
    if not whole:
        return ""
    if any(reason != "length" for reason in ends):
        return "[DONE] after a half answer" if None in ends else f"finish_reason {ends}"
    if usage is not None and not ask.usage:
        return f"{USAGE}: not asked for"
    return _usage(ask, usage) if ask.usage else ""


def _collected(ask: Ask, frames: list[Any]) -> tuple[list[str], list[Any], Any, set[str]]:
    texts, ends, usage, ids = [""] * ask.n, [None] * ask.n, None, set()
    for frame in frames:
        ids.add(frame["id"])
        for choice in frame["choices"] or ():
            said = choice.get("delta", choice)
            texts[choice["index"]] += next((said[part] for part in _PARTS if said.get(part)), "")
            ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
        if not frame["choices"]:
            usage = frame.get("usage") or usage
    return texts, ends, usage, ids


def _texts(ask: Ask, texts: list[str], *, whole: bool) -> str:
    for choice, text in enumerate(texts):
        marks = NONCE.findall(text)
        if ask.sampled and not marks:
            if text or whole:
                return "a sample without its mark" if text else "an empty choice"
            continue
        right = "".join(words(ask.tag, ask.tokens, choice, marks[0] if ask.sampled else ""))
        if text != right and (whole or not right.startswith(text)):
            if right.startswith(text):
                return "[DONE] or an end after a half answer"
            return "another text"
    return ""


def _usage(ask: Ask, usage: Any) -> str:
    """Check the usage. Bodies of merged twins are an exception: the engine reports one sum for all, so each share
    is an estimate."""
    if usage is None:
        return f"{USAGE}: none"
    before, after, total = usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
    if not all(type(count) is int for count in (before, after, total)):
        return f"{USAGE}: no numbers"
    right = ask.tokens * ask.n
    shared_out = ask.sampled and not ask.stream and right / 4 <= after <= right * 4
    sound = before == prompt_tokens(ask.tag) and total == before + after and (after == right or shared_out)
    return "" if sound else f"{USAGE}: other numbers"


def _whole(ask: Ask, body: bytes) -> str:
    answer = json.loads(body)
    if ask.endpoint == "embeddings":
        wanted = [(at, vector(text)) for at, text in enumerate(ask.inputs)]
        got = [(datum["index"], datum["embedding"]) for datum in answer["data"]]
        return "" if got == wanted else "other vectors"
    if ask.endpoint == "tokenize":
        return "" if answer == tokenized(ask.tag, ask.tokens) else "other tokens"
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(ask.n)):
        return "other choices than were asked for"
    texts = [choice["message"]["content"] if ask.endpoint == "chat" else choice["text"] for choice in choices]
    ends = [choice["finish_reason"] for choice in choices]
    found = _texts(ask, texts, whole=True)
    if found:
        return found
    if ends != ["length"] * ask.n:
        return "success without a finish" if None in ends else f"finish_reason {ends}"
    return _usage(ask, answer.get("usage"))

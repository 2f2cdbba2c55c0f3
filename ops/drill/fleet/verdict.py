"""Judges one answer of the drill. Pure: the time of each fact comes from the reader."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ops.drill.fleet.texts import tokens_of

Kind = Literal["exact", "error", "cut", "left", "refused", "wrong"]
"""Whole and right; ended by a typed error; ended with the client's own gateway; left by the client; not begun, as
the client's own gateway was down; or wrong, of which a hang is one."""
End = Literal["open", "whole", "cut", "left", "refused", "hung"]
KINDS: Final[tuple[Kind, ...]] = ("exact", "error", "cut", "left", "refused", "wrong")


@dataclass(slots=True)
class Answer:
    """What a client received for one request."""

    prompt: str
    node: str
    stream: bool = True
    usage_asked: bool = False
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    cache: str = ""  # what the gateway says: hit, miss, attached
    content: str = ""
    fingerprints: list[str] = field(default_factory=list)  # each once, as they came
    ids: set[str] = field(default_factory=set)
    finishes: int = 0
    usage: int | None = None  # tokens
    done: int = 0
    late: int = 0  # events behind [DONE] or an error
    error: str = ""  # its code
    malformed: str = ""
    end: End = "open"
    times: list[float] = field(default_factory=list)  # of each event with content, where the reader keeps them

    def event(self, data: bytes) -> None:
        """One event of a stream, without `data: `."""
        if self.done or self.error:
            self.late += 1
        if data == b"[DONE]":
            self.done += 1
            return
        try:
            self._read(json.loads(data))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
            self.malformed = f"{type(e).__name__} in {data[:80]!r}"

    def body(self, data: bytes) -> None:
        """The body of an answer that is no stream."""
        try:
            self._read(json.loads(data))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
            self.malformed = f"{type(e).__name__} in {data[:80]!r}"

    def _read(self, event: dict[str, Any]) -> None:
        if "error" in event:
            error = event["error"]
            self.error = str(error["code"] or error["type"])
            if not error["message"]:
                self.malformed = "an error without a message"
            return
        self.ids.add(f"{event['id']} {event['created']} {event['model']}")
        fingerprint = event["system_fingerprint"]
        if fingerprint not in self.fingerprints:
            self.fingerprints.append(fingerprint)
        for choice in event["choices"]:
            part = choice["delta"] if self.stream else choice["message"]
            self.content += part.get("content") or ""
            self.finishes += choice["finish_reason"] is not None
        if (usage := event.get("usage")) is not None:
            self.usage = usage["completion_tokens"]


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Kind
    why: str = ""


def judge(answer: Answer, *, own_gateway_ended: bool) -> Verdict:
    """`own_gateway_ended`: the client's own gateway was killed, stopped or cut off while it answered."""
    if wrong := _wrong(answer, own_gateway_ended=own_gateway_ended):
        return Verdict("wrong", wrong)
    if answer.end in ("left", "refused"):
        return Verdict(answer.end)
    if answer.error:
        return Verdict("error", answer.error)
    if answer.end in ("cut", "hung"):
        return Verdict("cut", answer.end)
    return Verdict("exact", answer.cache)


def _wrong(answer: Answer, *, own_gateway_ended: bool) -> str:
    tokens = tokens_of(answer.prompt)
    text = "".join(tokens)
    if answer.malformed:
        return answer.malformed
    if not text.startswith(answer.content):
        return f"another text at {_differs(text, answer.content)} of {len(answer.content)} characters"
    if answer.late:
        return f"{answer.late} events behind the end"
    if len(answer.ids) > 1:
        return f"ids of {len(answer.ids)} answers"
    if answer.end == "hung" and not own_gateway_ended:
        return "a hang"
    if answer.end in ("cut", "refused") and not answer.error and not own_gateway_ended:
        return f"{answer.end} by a gateway that lives"
    if answer.end == "open":
        return "not at its end"
    if answer.end != "whole" or answer.error:
        return ""
    if answer.status != 200:
        return f"status {answer.status} without an error"
    if answer.stream and answer.done != 1:
        return "an end without [DONE] or an error"
    if answer.content != text:
        return f"a clean end after {len(answer.content)} of {len(text)} characters"
    if answer.finishes != 1:
        return f"{answer.finishes} finish reasons"
    if (answer.usage_asked or not answer.stream) and answer.usage != len(tokens):
        return f"usage of {answer.usage} tokens, not {len(tokens)}"
    if answer.stream and not answer.usage_asked and answer.usage is not None:
        return "usage that was not asked for"
    return ""


def _differs(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))

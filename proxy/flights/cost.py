"""How many tokens a request may cost, estimated before an engine has seen it, and what its answer did cost."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import msgspec

from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import Mode
from proxy.wire import BYTES_A_TOKEN, ApiRequest, RawBody, generates, integer

MEDIA_TOKENS: Final = 1024
"""Tokens of an image or a sound: its size in bytes says nothing about them."""
MAX_CHOICES: Final = 128
_ROLES: Final = frozenset({"", "system", "developer", "user", "assistant", "tool", "function"})
_NOTHING: Final = msgspec.Raw(b"")
_AROUND: Final = BYTES_A_TOKEN * 4  # bytes that a chat template adds to a message, its role included
_LONGEST: Final = 64  # bytes of a number that is read
_ALLOWED: Final = ("max_output_tokens", "max_completion_tokens", "max_tokens")
_AGAIN: Final = (
    *(("query", "items"), ("query", "documents"), ("queries", "items"), ("queries", "documents")),
    *(("text_1", "text_2"), ("data_1", "data_2"), ("state", "questions"), ("input", "questions")),
)
"""Members of scoring and decisions that an engine reads again with each item of another."""
_PAIRED: Final = frozenset({"queries", "text_1", "data_1"})
"""Of these, lists as long as that of the items are read once."""

_BAD: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Cost(NamedTuple):
    """Tokens of a request."""

    prompt: int
    completion: int


NO_COST: Final = Cost(0, 0)


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    type: str = "text"
    text: str = ""


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    """A message of texts only, as nearly all are."""

    role: str = ""
    content: str | list[_Part | str] | None = None
    name: str = ""
    tool_call_id: str = ""


_MESSAGES: Final = msgspec.json.Decoder(list[_Message])
_MEMBERS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_PARTS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw] | str])
_BESIDE: Final = ("tools", "functions", "documents", "chat_template_kwargs", "chat_template", "suffix")
"""Fields besides the prompt that a template puts into it."""
_MEDIA: Final = frozenset(
    (
        "image_url",
        "input_audio",
        "audio_url",
        "video_url",
        "source",
        "file",
        "image",
        "audio",
        "video",
        "file_data",
        "file_url",
        "image_embeds",
        "audio_embeds",
        "image_pil",
    )
)
_PROMPTS: Final = msgspec.json.Decoder(str | list[Any])


def estimate(api_request: ApiRequest, assumed: int) -> Cost:
    """Estimate a request's tokens. The prompt by its bytes, or by its token ids; the completion by what the
    request allows, at most `assumed` tokens a choice, and `assumed` where it sets no limit."""
    if api_request.large is not None:
        return Cost(*api_request.large.cost)
    fields = api_request.fields
    if api_request.endpoint == "chat":
        prompt, prompts = _chat(fields), 1
    else:
        prompt, prompts = _prompts(api_request.prompt)
        if "prompt_embeds" in fields:
            prompt += MEDIA_TOKENS
    for name in _BESIDE:
        if name in fields:
            prompt += math.ceil(len(bytes(fields[name])) / BYTES_A_TOKEN)
    if api_request.endpoint == "embeddings":
        return Cost(prompt, 0)
    allowed = _count(fields.get("max_completion_tokens")) or _count(fields.get("max_tokens")) or assumed
    choices = max(_choices(fields.get("n")), _choices(fields.get("best_of"))) * prompts
    return Cost(prompt, min(allowed, assumed) * min(choices, MAX_CHOICES))


def estimate_raw(path: str, passed: RawBody, assumed: int) -> Cost:
    """Estimate the tokens of a body that passes through: the prompt by its size, and that of what an engine reads
    more than once; files of a form as media; and the completion by what it allows, on paths that generate."""
    if passed.kind == "none":
        return NO_COST
    form = passed.form
    if form is None:
        prompt = math.ceil((len(passed.body) + _read_again(passed.members)) / BYTES_A_TOKEN)
    else:
        files = form.files
        texts = len(passed.body) - sum(part.end - part.start for part in files)
        prompt = math.ceil(texts / BYTES_A_TOKEN) + MEDIA_TOKENS * len(files)
    if not generates(path):
        return Cost(prompt, 0)
    allowed = min(assumed, next(filter(None, (passed.number(name) for name in _ALLOWED)), assumed))
    choices = max(1, passed.number("n") or 1, passed.number("best_of") or 1) * passed.conversations
    return Cost(prompt, allowed * min(choices, MAX_CHOICES))


def actual_cost(flight: Flight, cost: Cost) -> int:
    """The tokens that an answer cost: by the engine's usage, else the prompt where the engine had begun, and one
    token for each event, or the estimate for one body. One that failed before its first token cost nothing."""
    if flight.usage is not None:
        return max(0, flight.usage.prompt_tokens) + max(0, flight.usage.completion_tokens)
    if flight.head is not None and flight.head.status >= 400:
        return 0
    events = flight.content_events + flight.events
    if events or (flight.mode is Mode.STREAM and flight.times.first is not None):
        return cost.prompt + events
    if flight.phase is Phase.LANDED:
        return cost.prompt + cost.completion  # one body, or a raw answer, without usage
    if flight.phase is Phase.CANCELLED and was_dispatched(flight):
        # One body comes when all of it is generated: how much was, nobody says.
        return cost.prompt + (0 if flight.mode is Mode.STREAM else cost.completion)
    return 0


def was_dispatched(flight: Flight) -> bool:
    """Whether the request was sent to an engine. One that was queued, that was connecting, or that no engine took,
    cost nothing."""
    return (flight.before if flight.ended else flight.phase) in (Phase.PREFILL, Phase.STREAMING)


def _read_again(members: dict[str, Any]) -> int:
    """The bytes of a text that is read again with each item but the first."""
    for name, others in _AGAIN:
        text, items = members.get(name), members.get(others)
        if not text or not isinstance(items, list | dict) or len(items) < 2:
            continue
        if name in _PAIRED and isinstance(text, list) and len(text) == len(items):
            continue
        return len(msgspec.json.encode(text)) * (len(items) - 1)
    return 0


def _chat(fields: dict[str, msgspec.Raw]) -> int:
    raw = bytes(fields.get("messages", b"[]"))
    try:
        if _may_be_doubled(raw):
            return math.ceil(len(raw) / BYTES_A_TOKEN)
        try:
            messages = _MESSAGES.decode(raw)
        except msgspec.ValidationError:
            size, media = _members(raw)
            return math.ceil(size / BYTES_A_TOKEN) + media * MEDIA_TOKENS
    except _BAD:
        return math.ceil(len(raw) / BYTES_A_TOKEN)  # for the engine to judge
    size = 0
    for message in messages:
        size += _AROUND
        if message.role not in _ROLES:
            size += len(message.role)
        if message.name or message.tool_call_id:
            size += len(message.name) + len(message.tool_call_id)
        content = message.content
        if content is None or isinstance(content, str):
            size += _size(content or "")
            continue
        for part in content:
            size += _size(part if isinstance(part, str) else part.text)
    return math.ceil(size / BYTES_A_TOKEN)


def _members(raw: bytes) -> tuple[int, int]:
    """Bytes and media items of messages that hold more than texts: tool calls, reasoning, images."""
    size = media = 0
    for message in _MEMBERS.decode(raw):
        size += max(_AROUND, len(message.pop("role", _NOTHING)))
        content = message.get("content", _NOTHING)
        if memoryview(content)[:1].tobytes() != b"[":
            size += sum(map(len, message.values()))
            continue
        size += sum(map(len, message.values())) - len(content)
        for part in _PARTS.decode(content):
            if isinstance(part, str):
                size += _size(part)
                continue
            part.pop("type", None)
            kinds = _MEDIA & part.keys()
            media += bool(kinds)
            size += sum(map(len, part.values())) - sum([len(part[kind]) for kind in kinds])
    return size, media


def _may_be_doubled(raw: bytes) -> bool:
    """Whether messages may have a duplicate member, of which an engine may take the first where we take the last.
    Their text has more quotes than their value then, unless quotes are escaped as numbers."""
    if b"\\u0022" in raw or b"\\u005" in raw:
        return True
    return raw.count(b'"') != msgspec.json.encode(msgspec.json.decode(raw)).count(b'"')


def _prompts(raw: bytes) -> tuple[int, int]:
    """Tokens, and the number of prompts."""
    try:
        value = _PROMPTS.decode(raw)
    except _BAD:
        return math.ceil(len(raw) / BYTES_A_TOKEN), 1
    if isinstance(value, str):
        return math.ceil(_size(value) / BYTES_A_TOKEN), 1
    if value and isinstance(value[0], int):
        return len(value), 1
    tokens = 0
    for item in value:
        tokens += len(item) if isinstance(item, list) else math.ceil(_size(str(item)) / BYTES_A_TOKEN)
    return tokens, max(1, len(value))


def _count(raw: msgspec.Raw | None) -> int:
    """A positive integer, else 0: the engine judges anything else."""
    text = bytes(raw) if raw is not None else b""
    return int(text) if len(text) <= 12 and text.isdigit() else 0


def _choices(raw: msgspec.Raw | None) -> int:
    """The same of choices, at least 1; and an engine takes `"8"` and `8.0` too."""
    found = _count(raw)
    if found or raw is None or len(bytes(raw)) > _LONGEST:
        return found or 1
    try:
        return max(1, integer(msgspec.json.decode(raw)) or 1)
    except _BAD:
        return 1


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

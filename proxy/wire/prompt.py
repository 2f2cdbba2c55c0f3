"""Owns the texts of a request: what of a body the model reads, and how much of it there is.
Must not know limits, deny lists or HTTP: an Ask or a body in, texts and counts out.
Called by sizes and by the gate, only where one of them has something to look for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import msgspec

from proxy.errors import Code, GatewayError
from proxy.wire.openai import PROMPT_FIELD, Ask

_NOT_TEXT: Final = frozenset({"role", "type", "url", "image_url", "audio_url", "video_url", "data", "file_data"})
"""Members of a message that hold no prompt text where they are plain strings: kinds, and media by reference or in
base64. A `text` is always read, whatever it looks like."""

BYTES_A_TOKEN: Final = 4
"""Of UTF-8. English has about four letters a token, Chinese one character of three bytes."""

NO_TEXT_FIELDS: Final = frozenset({"model", "user", "stream", "stream_options", "metadata"})
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Prompt(NamedTuple):
    """What a prompt is made of."""

    parts: list[list[str]]  # of each message, prompt or input: its texts, in order
    items: int  # messages, prompts or inputs
    ids: int  # token ids: text that nobody here can read

    @property
    def chars(self) -> int:
        """Characters of all texts; a token id counts as one."""
        return sum(len(text) for texts in self.parts for text in texts) + self.ids


def prompt_of(ask: Ask) -> Prompt:
    """The prompt's texts. Raises GatewayError 400 where it cannot be read."""
    name = PROMPT_FIELD[ask.endpoint]
    if name not in ask.fields:
        return Prompt([], 0, 0)  # prompt_embeds
    value = _decoded(name, ask.fields[name])
    if isinstance(value, str):
        return Prompt([[value]], 1, 0)
    if not isinstance(value, list):
        return Prompt([], 0, 0)
    if ask.endpoint == "chat":
        return Prompt([strings(message, but=_NOT_TEXT) for message in value], len(value), 0)
    if value and all(isinstance(item, int) for item in value):
        return Prompt([], 1, len(value))
    ids = sum(len(item) for item in value if isinstance(item, list))
    return Prompt([strings(item, but=_NOT_TEXT) for item in value], len(value), ids)


def other_texts(ask: Ask) -> list[str]:
    """Every string in the fields beside the prompt: tools, documents, a chat template, a suffix."""
    prompt = PROMPT_FIELD[ask.endpoint]
    found: list[str] = []
    for name, raw in ask.fields.items():
        if name != prompt and name not in NO_TEXT_FIELDS and b'"' in bytes(raw):
            found += strings(_decoded(name, raw))
    return found


def body_texts(body: bytes) -> list[str]:
    """Every string in a body that we pass through; a body that is not JSON is one text."""
    try:
        return strings(msgspec.json.decode(body), but=_NOT_TEXT)
    except _BROKEN:
        return [body.decode("utf-8", "replace")]


def strings(value: Any, *, but: Collection[str] = ()) -> list[str]:
    """Every string inside a JSON value, in order; not the names of members, nor the strings named by `but`.
    Walked without recursion: how deep it is, is the client's choice."""
    found: list[str] = []
    rest: list[Any] = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, list):
            rest.extend(reversed(item))
        elif isinstance(item, dict):
            rest.extend(
                member for name, member in reversed(item.items()) if name not in but or not isinstance(member, str)
            )
    return found


def _decoded(name: str, raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except _BROKEN as e:
        raise GatewayError(
            Code.INVALID_JSON, f"The field {name[:64]!r} is not valid JSON: {e}.", param=name[:64]
        ) from None

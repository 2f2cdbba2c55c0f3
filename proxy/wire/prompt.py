"""The texts of a request: what the model reads of a body, and how much. Reading them is slow, so it is done
only where a limit or a deny list needs them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from proxy.errors import Code, GatewayError
from proxy.wire.document import read, read_leniently
from proxy.wire.openai import PROMPT_FIELD, ApiRequest, Endpoint

_NOT_TEXT: Final = frozenset({"role", "type", "url", "image_url", "audio_url", "video_url", "data", "file_data"})
"""Members of a message that are not prompt text where they are strings: kinds, and media by URL or in base64. A
`text` is always read, whatever it looks like."""

BYTES_A_TOKEN: Final = 4
"""In UTF-8. English has about four letters per token, Chinese one character of three bytes."""

NO_TEXT_FIELDS: Final = frozenset({"model", "user", "stream", "stream_options", "metadata"})
"""Top-level members that no model reads."""

_API_WORDS: Final = """
system developer user assistant tool function role content name type text input output messages prompt tools
functions tool_calls tool_call_id tool_choice arguments parameters properties required description enum items
anyOf oneOf allOf additionalProperties strict object array string integer number boolean null default format
title minimum maximum minItems maxItems const id index call_id image_url input_text input_image input_audio
output_text image audio audio_url video_url video url data source media_type detail base64 tool_use
tool_result message function_call function_call_output reasoning reasoning_content json_schema json_object
response_format schema documents chat_template_kwargs instructions model max_tokens stream temperature
cache_control ephemeral input_schema $ref $defs
"""
WORDS: Final = frozenset(_API_WORDS.split())
"""Words of the API. As member names, roles and types they occur in ordinary requests: a deny list with one of
them means the text."""

_CONVERSATIONS: Final = ("messages", "input")  # top-level members whose items have content parts
_PARTS: Final = ("content", "output")
_ROLES: Final = ("role", "type")
_MEDIA: Final = frozenset(
    {"image_url", "input_image", "image", "audio_url", "input_audio", "video_url", "input_video"}
)
_FILES: Final = frozenset({"file", "input_file"})  # an engine may read their text
_MEDIA_MEMBERS: Final = frozenset({"image_url", "input_audio", "audio_url", "video_url", "source"})
_MEDIA_VALUES: Final = frozenset({"url", "data"})
_NUMBERS: Final = (int, float)
_IDS: Final = ("prompt", "input", "query", "items", "prompt_token_ids", "token_ids", "prompt_ids", "input_ids")
"""Members that hold token ids where they hold numbers."""
_TEXTS: Final = frozenset({"text", "refusal", "thinking"})  # members of a content part that an engine joins
_NESTED: Final = (dict, list)
_BEGINS: Final = re.compile(r'\s*[\[{"]')


class Prompt(NamedTuple):
    """The content of a prompt."""

    parts: list[list[str]]  # the texts of each message, prompt or input, in order
    items: int  # messages, prompts or inputs
    ids: int  # number of token ids, which cannot be read here

    @property
    def chars(self) -> int:
        """Characters of all texts; a token id counts as one."""
        return sum(len(text) for texts in self.parts for text in texts) + self.ids


def prompt_of(api_request: ApiRequest) -> Prompt:
    """The prompt's texts. Raises GatewayError 400 where it cannot be read."""
    name = PROMPT_FIELD[api_request.endpoint]
    if name not in api_request.fields:
        return Prompt([], 0, 0)  # prompt_embeds
    return prompt_in(api_request.endpoint, read(bytes(api_request.fields[name]), f"The field {name!r}", name))


def prompt_in(endpoint: Endpoint, value: Any) -> Prompt:
    """`prompt_of` for a prompt's decoded value."""
    if isinstance(value, str):
        return Prompt([[value]], 1, 0)
    if not isinstance(value, list):
        return Prompt([], 0, 0)
    if endpoint == "chat":
        return Prompt([strings(message, but=_NOT_TEXT) for message in value], len(value), 0)
    if value and all(isinstance(item, int) for item in value):
        return Prompt([], 1, len(value))
    ids = sum(len(item) for item in value if isinstance(item, list))
    return Prompt([strings(item, but=_NOT_TEXT) for item in value], len(value), ids)


def media_free(value: Any) -> list[str]:
    """All strings of a passed-through body, in order, without kinds and media."""
    return strings(value, but=_NOT_TEXT)


def everything(value: Any, *, but: Collection[str] = ()) -> list[str]:
    """All strings, member names and nested numbers (a template may print those of a tool's arguments) in a
    request's JSON value, except for the top-level members `but`.

    Omitted is what cannot be text of the client or reach the prompt as such: words of the API, as names and as
    values of `role` and `type`; and the media of content parts of type image, audio or video, where the API has
    such parts. A string that contains JSON is decoded too: templates get it decoded.
    """
    found: list[str] = []
    rest: list[Any] = []
    if not isinstance(value, dict):
        rest.append(value)
    else:
        for name, member in value.items():
            if name in but:
                continue
            if name not in WORDS:
                found.append(name)
            if name in _CONVERSATIONS and isinstance(member, list):
                for item in member:
                    _spread_item(item, rest)
            elif type(member) not in _NUMBERS:  # a parameter: `max_tokens`, `seed`
                rest.append(member)
    _walk(rest, found)
    return found


def refuse_template(members: Mapping[str, Any]) -> None:
    """Raises GatewayError 400 for a template: it can produce text that no member contains."""
    options = members.get("chat_template_kwargs")
    inside = options.get("chat_template") if isinstance(options, dict) else None
    if members.get("chat_template") is not None or inside is not None:
        raise GatewayError(
            Code.INVALID_VALUE,
            "Prompts are checked here, which a chat template prevents: omit chat_template.",
            param="chat_template",
        )


def refuse_ids(members: Mapping[str, Any]) -> None:
    """Raises GatewayError 400 for a prompt of token ids or embeddings."""
    if members.get("prompt_embeds") is not None or any(
        holds_ids(members[name]) for name in _IDS if name in members
    ):
        raise GatewayError(
            Code.INVALID_VALUE,
            "Prompts are checked here, and token ids cannot be checked: send text.",
            param="prompt",
        )


def holds_ids(value: Any) -> bool:
    """Whether a prompt has numbers in place of text, or an object that may hold them."""
    if not isinstance(value, list):
        return False
    return any(isinstance(item, _NUMBERS) for item in value) or any(
        (isinstance(item, list) and any(isinstance(each, _NUMBERS) for each in item))
        or (isinstance(item, dict) and any(holds_ids(item[name]) for name in _IDS if name in item))
        for item in value
    )


def joined(value: Any) -> list[list[str]]:
    """The texts of each list of content parts, in order, as an engine joins them. Without recursion: the depth
    is the client's choice."""
    found: list[list[str]] = []
    rest: list[Any] = [value]
    while rest:
        item = rest.pop()
        if type(item) is dict:
            rest += [member for member in item.values() if member and type(member) in _NESTED]
        elif type(item) is list:
            rest += [part for part in item if part and type(part) in _NESTED]
            texts, parts = [], False
            for part in item:
                if type(part) is str:
                    texts.append(part)
                elif part and type(part) is dict and not _TEXTS.isdisjoint(part) and "content" not in part:
                    parts = True
                    texts += [text for name, text in part.items() if name in _TEXTS and type(text) is str]
            if parts and len(texts) > 1:
                found.append(texts)
    return found


def _spread_item(item: Any, rest: list[Any]) -> None:
    """Separate the content parts of a message, or of an input item, from its other members."""
    if not isinstance(item, dict) or ("content" not in item and "output" not in item):
        rest.append(item)
        return
    rest.append({name: member for name, member in item.items() if name not in _PARTS or type(member) is not list})
    parts = [part for name in _PARTS if type(item.get(name)) is list for part in item[name]]
    while parts:
        part = parts.pop()
        kind = part.get("type") if type(part) is dict else None
        if type(kind) is str and kind in _FILES:
            raise GatewayError(
                Code.INVALID_VALUE,
                "Prompts are checked here, and files cannot be checked: send text.",
                param="messages",
            )
        if type(kind) is str and kind in _MEDIA:
            part = _without_media(part)
        elif type(part) is dict and type(part.get("content")) is list:  # of a tool's result
            parts += part["content"]
            part = {name: member for name, member in part.items() if name != "content"}
        rest.append(part)


def _without_media(part: dict[str, Any]) -> dict[str, Any]:
    left: dict[str, Any] = {}
    for name, member in part.items():
        if name not in _MEDIA_MEMBERS:
            left[name] = member
        elif isinstance(member, dict):
            left[name] = {
                inner: value
                for inner, value in member.items()
                if inner not in _MEDIA_VALUES or not isinstance(value, str)
            }
        elif not isinstance(member, str):
            left[name] = member
    return left


def _walk(rest: list[Any], found: list[str]) -> None:
    """Add all strings and names in these values. Without recursion: the depth is the client's choice."""
    while rest:
        item = rest.pop()
        kind = type(item)
        if kind is str:
            found.append(item)
            if "\\" in item and _BEGINS.match(item) is not None:
                try:
                    rest.append(read_leniently(item))
                except (ValueError, RecursionError):
                    pass  # not JSON: plain text
        elif kind is list or kind is tuple:
            rest += item
        elif kind in _NUMBERS:
            found.append(str(item))
        elif kind is dict:
            found += item.keys() - WORDS
            for name in _ROLES:
                if type(item.get(name)) is str and item[name] in WORDS:
                    item = {**item, name: None}
            rest += item.values()


def strings(value: Any, *, but: Collection[str] = ()) -> list[str]:
    """All strings inside a JSON value, in order; without member names and the string members named in `but`.
    Without recursion: the depth is the client's choice."""
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

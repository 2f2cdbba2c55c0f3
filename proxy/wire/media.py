"""Owns whether a prompt refers to media by URL (a picture, audio, video), which may change under its URL.
Must not know sharing policy, flights or the store: a request in, a yes or no out.
Called by the gateway, and by the child process that reads large requests."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from proxy.wire.openai import PROMPT_FIELD, ApiRequest

_MAYBE: Final = re.compile(rb"_url|\\u00(?:5[fF]|7[25]|6[cC])").search
"""A member named `…_url`, or a spelling in which one of these letters is escaped."""
_SUFFIX: Final = "_url"  # image_url, audio_url, video_url; engines add more


def refers(ask: ApiRequest) -> bool:
    """Whether the prompt has a URL that is not `data:` where vLLM fetches media."""
    raw = ask.fields.get(PROMPT_FIELD[ask.endpoint], b"")
    if _MAYBE(raw) is None:
        return False
    try:
        return _fetches(msgspec.json.decode(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return True  # the key or the engine refuses it


def _fetches(value: Any) -> bool:
    """Walked without recursion: the depth is the client's choice."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, list):
            rest.extend(item)
        elif isinstance(item, dict):
            for name, member in item.items():
                url = member.get("url") if isinstance(member, dict) else member
                if name.endswith(_SUFFIX) and isinstance(url, str) and url[:5].lower() != "data:":
                    return True
            rest.extend(item.values())
    return False

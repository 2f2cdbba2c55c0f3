"""Which sampled requests are twins, and the one request with `n` that they become. Pure functions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from proxy.flights.key import UNKEYED, ordinary
from proxy.wire import ApiRequest, stream_extras
from proxy.wire.fold import FOLDABLE_FIELDS

_ENCODE: Final = msgspec.json.Encoder().encode
_NOT_SAMPLED_APART: Final = frozenset({"seed", "priority"})
_MAX_RECENT: Final = 512
MAX_IDS: Final = 1024 * 1024
"""Bytes of a prompt times choices; about 1.5 times as many bytes come back as token ids of the prompt."""
RECENT_SECONDS: Final = 1.0


def choices_asked(api_request: ApiRequest) -> int | None:
    """`n`, 1 by default; None if it is no positive integer."""
    raw = bytes(api_request.fields.get("n", b"1"))
    if raw == b"null":
        return 1
    return int(raw) if raw.isdigit() and len(raw) < 6 and int(raw) > 0 else None


def mergeable(api_request: ApiRequest) -> bool:
    """Whether this request and its twins may be one request with `n`: it samples, and every field of it is known
    to concern each choice by itself."""
    if api_request.endpoint == "embeddings" or api_request.temperature == 0 or api_request.seed is not None:
        return False
    fields = api_request.fields
    known = FOLDABLE_FIELDS[api_request.endpoint] - _NOT_SAMPLED_APART
    if not fields.keys() <= known or choices_asked(api_request) is None:
        return False
    if api_request.endpoint == "completions" and not bytes(fields.get("prompt", b"")).startswith(b'"'):
        return False  # a list of prompts has choices for each
    for name in UNKEYED:
        if name in fields and not ordinary(api_request, name):
            return False  # an engine may refuse it, which must not end its twins
    return not stream_extras(api_request)


def twin_key(api_request: ApiRequest, *, tenant: bytes, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A key that is equal for requests that differ only in `n`, in the caller, and in whether usage is wanted.

    It is the request itself and no hash of it: two that are not the same cannot meet under one key.
    """
    fields = api_request.fields
    same = {name: fields[name] for name in sorted(fields) if name not in UNKEYED and name != "n"}
    sent = [(name, value.encode("utf-8", "surrogateescape")) for name, value in sorted(headers)]
    return _ENCODE((api_request.endpoint, api_request.stream, tenant, sent, same))


def merged_body(api_request: ApiRequest, n: int) -> bytes:
    """The merged request: `n` choices, and fields by which the tokens of each choice are counted: continuous usage
    in a stream, token ids in a body."""
    members: dict[str, object] = {**api_request.fields, "n": n}
    if api_request.stream:
        members["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    elif lists_ids(api_request, n):
        members["return_token_ids"] = True
    return _ENCODE(members)


def lists_ids(api_request: ApiRequest, n: int) -> bool:
    """Whether the merged request asks for token ids: not for a long prompt, whose own ids come with each choice of
    a completion."""
    return not api_request.stream and len(api_request.prompt) * n <= MAX_IDS


class RecentPrompts:
    """Which prompts came within the last second. The first of several twins is not delayed; the next one that sees
    it here waits for the end of its event loop iteration, in which others may come.

    By Python's own hash of the prompt's bytes, keyed by the process: a collision costs one turn and no more."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def seen(self, prompt: bytes, now: float) -> bool:
        """Whether it came within the last second. Records it."""
        mark = hash(prompt)
        before = self._seen.pop(mark, None)
        self._seen[mark] = now
        if len(self._seen) > _MAX_RECENT:
            self._seen.popitem(last=False)
        return before is not None and now - before <= RECENT_SECONDS

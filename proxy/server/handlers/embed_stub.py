"""The stub answer of `/embed`, and the statuses by which an engine says that it cannot embed."""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.wire import ApiRequest

CANNOT_EMBED: Final = frozenset({404, 405, 501})
"""Statuses with which engines answer where they have no such endpoint."""


class _Error(msgspec.Struct):
    error: dict[str, object] | None = None


def names_model(log: list[bytes]) -> bool:
    """Whether a 404 is about the model, not about embedding."""
    try:
        error = msgspec.json.decode(b"".join(log), type=_Error).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return error is not None and error.get("param") == "model"


def stub_vector(api_request: ApiRequest) -> dict[str, object]:
    """A vector that says it is none: zeros, marked, for clients that only need the shape."""
    return {
        "object": "list",
        "stub": True,
        "model": api_request.model,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0] * 8}],
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }

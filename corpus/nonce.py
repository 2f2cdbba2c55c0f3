"""Owns the nonce: what makes a prompt share no cached prefix with any other."""

from __future__ import annotations

import hashlib
from typing import Any


def nonce(salt: str, *names: object) -> str:
    """Sixteen hex digits: two nonces nearly always differ from their first character on."""
    text = "\x1f".join([salt, *map(str, names)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_nonce(fields: dict[str, Any], nonce: str) -> dict[str, Any]:
    """A copy with the nonce at the very front of the prompt, where prefix caches begin.

    What a chat template puts before the first message is the engine's, and stays in common: with vLLM's blocks of
    16 tokens a long default system prompt can still hit.
    """
    front = f"{nonce} "
    if "messages" in fields:
        first, *rest = fields["messages"]
        return {**fields, "messages": [{**first, "content": _before(front, first.get("content"))}, *rest]}
    name = "prompt" if "prompt" in fields else "input"
    value = fields[name]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return {**fields, name: [front + item for item in value]}
    if not isinstance(value, str):
        raise ValueError(f"a {name} of token ids cannot carry a nonce; give text")
    return {**fields, name: front + value}


def _before(front: str, content: Any) -> Any:
    if isinstance(content, list):
        return [{"type": "text", "text": front}, *content]
    return front + (content or "")

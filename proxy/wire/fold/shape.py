"""What is known of how an engine's streams and bodies are made up, as plain data: it goes into Redis and to
other processes."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

Dialect = Literal["vllm", "llama", "learned", "none"]
Members = tuple[tuple[str, str], ...]
"""Names, each with the constant JSON text of its value."""
Layout = tuple[tuple[str, str | None], ...]
"""Names in the order of a body, each with the constant JSON text of its value; None: from the stream."""


class Template(Struct, frozen=True):
    """The shape of an engine's answers, learned from one stream and one body of the same request."""

    chunk_object: str
    body_object: str
    chunk: Members  # unknown, constant members of chunks, their choices and deltas
    choice: Members
    delta: Members
    body: Layout
    body_choice: Layout
    message: Layout  # of a chat
    usage: Layout
    details: tuple[tuple[str, Layout], ...] = ()  # of members of usage that are objects
    empty: str | None = None  # the content of a body without text; None: not seen
    reasoning: str | None = None  # the member with reasoning, where one was seen


class Shape(Struct, frozen=True):
    """What is known of an engine's answers on one endpoint. Dialect `none`: they do not fold."""

    dialect: Dialect
    version: str | None = None  # of vLLM, where its fingerprint does not show it
    fingerprint: str | None = None  # of an engine whose fingerprint does not show its version
    template: Template | None = None
    why: str = ""  # the reason why it does not fold


VLLM: Final = Shape("vllm")
LLAMA: Final = Shape("llama")

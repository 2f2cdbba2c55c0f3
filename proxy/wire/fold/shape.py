"""What is known of how an engine's streams and bodies are made up, as plain data: it goes into Redis and to
other processes."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

Dialect = Literal["vllm", "llama", "learned", "none"]
Members = tuple[tuple[str, str], ...]
"""Names, and the JSON text that each one's value always is."""
Layout = tuple[tuple[str, str | None], ...]
"""Names in the order of a body, each with the JSON text of its value; None: it is made from the stream."""


class Template(Struct, frozen=True):
    """An engine's answers as one stream and one body of the same request showed them."""

    chunk_object: str
    body_object: str
    chunk: Members  # what chunks, their choices and deltas may have besides what is known; those that are constant
    choice: Members
    delta: Members
    body: Layout
    body_choice: Layout
    message: Layout  # of a chat
    usage: Layout
    details: tuple[tuple[str, Layout], ...] = ()  # of members of the usage that are objects
    empty: str | None = None  # what a body has for an answer without text; None: not seen
    reasoning: str | None = None  # the member that holds reasoning, where an answer with some was seen


class Shape(Struct, frozen=True):
    """What is known of an engine's answers on one endpoint. `none`: that they do not fold."""

    dialect: Dialect
    version: str | None = None  # of vLLM, where its fingerprint does not tell it
    fingerprint: str | None = None  # of an engine whose fingerprint does not tell its version
    template: Template | None = None
    why: str = ""  # it does not fold


VLLM: Final = Shape("vllm")
LLAMA: Final = Shape("llama")

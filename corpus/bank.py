"""Composed text of any length: handwritten sentences, filled and joined at random."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from corpus.draw import Draw

DATA: Final = Path(__file__).parent / "data"

BYTES_PER_TOKEN: Final = 3.962
"""Of composed text, by the SmolLM2 tokenizer: `composed` in the manifest has the measurement and its error."""

_SLOT: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of document. Templates are cut into literal text and slot names in turn: text at even places."""

    name: str
    titles: tuple[tuple[str, ...], ...]
    sentences: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bank:
    kinds: tuple[Kind, ...]
    words: dict[str, tuple[str, ...]]


@cache
def bank() -> Bank:
    raw = tomllib.loads((DATA / "bank.toml").read_text())

    def cut(texts: list[str]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(_SLOT.split(text)) for text in texts)

    kinds = tuple(Kind(k["name"], cut(k["title"]), cut(k["sentences"]), tuple(k["ask"])) for k in raw["kind"])
    return Bank(kinds, {name: tuple(words) for name, words in raw["words"].items()})


@cache
def one_token_words() -> tuple[str, ...]:
    """Common English words; each with a space before it is one token of SmolLM2 (held by `corpus calibrate`)."""
    return tuple((DATA / "words.txt").read_text().split())


def fill(draw: Draw, template: tuple[str, ...]) -> str:
    parts = [_slot(draw, part) if at % 2 else part for at, part in enumerate(template)]
    text = "".join(parts)
    return text[0].upper() + text[1:]


def _slot(draw: Draw, name: str) -> str:
    if name == "n":
        return str(2 + draw.below(97))
    if name == "big":
        return f"{110 + 10 * draw.below(970):,}"
    if name == "year":
        return str(1950 + draw.below(75))
    if name == "pct":
        return str(1 + draw.below(97))
    if name == "time":
        return f"{draw.below(24):02d}:{5 * draw.below(12):02d}"
    return draw.pick(bank().words[name])


def sentence(draw: Draw, kind: Kind) -> str:
    return fill(draw, draw.pick(kind.sentences))


def prose(draw: Draw, kind: Kind, size: int) -> str:
    """Paragraphs of whole sentences, at least `size` bytes, at most one sentence more. ASCII only."""
    paragraphs: list[str] = []
    length = 0
    while length < size:
        sentences: list[str] = []
        for _ in range(3 + draw.below(4)):
            sentences.append(sentence(draw, kind))
            length += len(sentences[-1]) + 1
            if length >= size:
                break
        paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs)


def exactly(draw: Draw, kind: Kind, size: int) -> str:
    """Prose of exactly `size` bytes: cut wherever that falls."""
    return prose(draw, kind, size)[:size].ljust(size)


def block(seed: int, name: object, size: int) -> str:
    """The text of one cache block: a function of seed and name alone, so that blocks are shared by name."""
    draw = Draw(seed, "block", name)
    kind = draw.pick(bank().kinds)
    return f"{exactly(draw, kind, size - 1)}\n" if size else ""


def words(draw: Draw, count: int) -> str:
    """`count` words of one token each, joined by spaces."""
    known = one_token_words()
    return " ".join([draw.pick(known) for _ in range(count)])

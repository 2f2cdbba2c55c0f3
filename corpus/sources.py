"""An endless supply of distinct prompts: the handwritten ones first, then variants, each a different text."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, Literal

import msgspec

from corpus.bank import BYTES_PER_TOKEN, Kind, bank, exactly, fill, prose
from corpus.draw import Draw
from corpus.manifest import CorpusError, Entry, Message, entries, manifest

Endpoint = Literal["chat", "completions", "embeddings"]
DEFAULT_SETS: Final = ("short-chat", "code", "multi-turn", "shared-system", "languages")

_READERS: Final = (
    "a beginner", "an expert", "a child of ten", "somebody in a hurry", "a sceptic", "a night nurse",
    "a retired engineer", "a student before an exam", "somebody who reads it on a phone", "a translator",
    "my team", "a newcomer to the country", "an editor", "a customer who is annoyed", "a radio audience",
    "two friends who disagree", "a volunteer", "a judge", "a farmer", "somebody who will read it aloud",
)  # fmt: skip
_FORMS: Final = (
    "as a list", "as one paragraph", "as a table", "in full sentences", "as a dialogue", "in plain words",
    "with one example", "with a counterexample", "as questions and answers", "in the order of importance",
    "with a summary in front", "without adjectives", "as numbered steps", "as a letter", "with the reasons last",
    "in the present tense",
)  # fmt: skip


class Made(msgspec.Struct, frozen=True):
    """One distinct prompt: its body fields, and its length in tokens by bytes over bytes per token."""

    id: str
    fields: dict[str, Any]
    estimate: int


def check_sets(names: tuple[str, ...], endpoint: Endpoint) -> None:
    """Raises CorpusError for a set that does not exist or does not fit the endpoint."""
    kind = "embeddings" if endpoint == "embeddings" else "chat"
    for name in names:
        if (has := manifest().named(name).endpoint) != kind:
            raise CorpusError(f"the set {name} is for {has}, not for {endpoint}")


class Sets:
    """The prompts of some sets, shuffled by the seed, and numbered without end."""

    def __init__(self, names: tuple[str, ...], endpoint: Endpoint, seed: int) -> None:
        names = names or (("embeddings",) if endpoint == "embeddings" else DEFAULT_SETS)
        check_sets(names, endpoint)
        self._endpoint: Endpoint = endpoint
        self._seed = seed
        self._entries = [(entry, _per_token(name)) for name in names for entry in entries(name)]
        Draw(seed, "sets").shuffle(self._entries)

    def __len__(self) -> int:
        """How many were written by hand; what is numbered beyond them is a variant."""
        return len(self._entries)

    def prompt(self, number: int) -> Made:
        turn, place = divmod(number, len(self._entries))
        entry, per_token = self._entries[place]
        if turn:
            entry = _variant(entry, turn, self._seed)
        size = sum(len(text.encode()) for text in entry.texts())
        return Made(entry.id, fields_of(entry, self._endpoint), max(1, round(size / per_token)))


@cache
def _per_token(name: str) -> float:
    tokens = manifest().named(name).tokens
    return tokens.bytes_per_token if tokens else BYTES_PER_TOKEN


def _variant(entry: Entry, turn: int, seed: int) -> Entry:
    """Another text to the same purpose. The turn itself is in it, so no two variants of an entry are alike."""
    draw = Draw(seed, "variant", entry.id, turn)
    if entry.messages is None:
        text = f"{entry.input} {fill(draw, draw.pick(draw.pick(bank().kinds).sentences))} ({turn + 1})"
        return Entry(f"{entry.id}+{turn}", input=text)
    last = entry.messages[-1].content
    wish = f"Write it for {draw.pick(_READERS)}, {draw.pick(_FORMS)}, in about {20 + 5 * draw.below(50)} words."
    asked = Message("user", f"{last}\n\n{wish} This is version {turn + 1}.")
    return Entry(f"{entry.id}+{turn}", messages=[*entry.messages[:-1], asked])


def fields_of(entry: Entry, endpoint: Endpoint) -> dict[str, Any]:
    """The members of the body that carry the prompt. For completions a conversation is written out as text."""
    if entry.messages is None:
        return {"input": entry.input}
    if endpoint == "chat":
        return {"messages": [{"role": m.role, "content": m.content} for m in entry.messages]}
    if len(entry.messages) == 1:
        return {"prompt": entry.messages[0].content}
    told = {"system": "", "user": "Question: ", "assistant": "Answer: "}
    return {"prompt": "\n\n".join([told[m.role] + m.content for m in entry.messages] + ["Answer:"])}


def as_fields(text: str, endpoint: Endpoint) -> dict[str, Any]:
    if endpoint == "chat":
        return {"messages": [{"role": "user", "content": text}]}
    return {"prompt": text} if endpoint == "completions" else {"input": text}


def document(draw: Draw, kind: Kind, size: int) -> str:
    """A titled text of about `size` bytes and a question about it: at least `size`, at most a sentence more."""
    title, question = fill(draw, draw.pick(kind.titles)), draw.pick(kind.questions)
    return f"{title}\n\n{prose(draw, kind, max(1, size - len(title) - len(question) - 4))}\n\n{question}"


def text_of(draw: Draw, tokens: int) -> str:
    """Composed text that is estimated at `tokens` tokens: a document with its question, where there is room."""
    kind = draw.pick(bank().kinds)
    size = round(tokens * BYTES_PER_TOKEN)
    title, question = fill(draw, draw.pick(kind.titles)), draw.pick(kind.questions)
    room = size - len(title) - len(question) - 4
    if room < 40:
        return exactly(draw, kind, max(1, size))
    return f"{title}\n\n{exactly(draw, kind, room)}\n\n{question}"


def documents(count: int, seed: int) -> list[Entry]:
    """The set `documents`: 250 to 1,500 tokens each, kinds in turn."""
    made = []
    for number in range(count):
        draw = Draw(seed, "document", number)
        kind = bank().kinds[number % len(bank().kinds)]
        text = document(draw, kind, 1000 + draw.below(5000))
        made.append(Entry(f"documents/{number:03d}", messages=[Message("user", text)], kind=kind.name))
    return made

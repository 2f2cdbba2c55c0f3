"""The prompt sets as files: reads the manifest and the sets, and verifies one against the other."""

from __future__ import annotations

import hashlib
import tomllib
from functools import cache
from typing import Any, Final, Literal

import msgspec

from corpus.bank import DATA

MANIFEST: Final = DATA / "manifest.toml"
LICENCE: Final = "Apache-2.0"


class CorpusError(ValueError):
    """A file of the corpus, or a name asked of it, is not what it should be."""


class Message(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a set: a conversation that ends with the user, or texts to embed."""

    id: str
    messages: list[Message] | None = None
    input: str | None = None
    lang: str | None = None
    group: str | None = None  # of a shared system prompt
    kind: str | None = None  # of a composed document

    def texts(self) -> list[str]:
        return [message.content for message in self.messages or ()] or [self.input or ""]


class Tokens(msgspec.Struct, forbid_unknown_fields=True):
    """By the SmolLM2 tokenizer, of the texts alone: a chat template adds its own."""

    total: int
    mean: float
    p50: int
    max: int
    bytes_per_token: float
    error_p50: float  # of bytes / bytes_per_token against the count, relative, absolute; per prompt
    error_p90: float


class PromptSet(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    file: str
    about: str
    licence: str
    endpoint: Literal["chat", "embeddings"]
    prompts: int
    bytes: int  # of the texts, in UTF-8
    sha256: str
    tokens: Tokens | None = None  # None: not measured yet


class Composed(msgspec.Struct, forbid_unknown_fields=True):
    """What is composed from bank.toml and words.txt, measured on texts of about `length` tokens."""

    bytes_per_token: float
    error_p50: float
    error_p90: float
    length: int
    one_token_words: int


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    tokenizer: str
    composed: Composed
    set: list[PromptSet]

    def named(self, name: str) -> PromptSet:
        for found in self.set:
            if found.name == name:
                return found
        raise CorpusError(f"there is no set {name!r}; there are {', '.join(s.name for s in self.set)}")


@cache
def manifest() -> Manifest:
    try:
        return msgspec.convert(tomllib.loads(MANIFEST.read_text()), Manifest)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as e:
        raise CorpusError(f"{MANIFEST.name}: {e}") from None


@cache
def entries(name: str) -> tuple[Entry, ...]:
    """The set's prompts. Raises CorpusError with the line that is wrong."""
    return tuple(parse(manifest().named(name).file, (DATA / manifest().named(name).file).read_bytes()))


def parse(file: str, data: bytes) -> list[Entry]:
    decoder = msgspec.json.Decoder(Entry)
    found = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            entry = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:  # the first has wrong types as well
            raise CorpusError(f"{file}:{number}: {e}") from None
        if (entry.messages is None) == (entry.input is None):
            raise CorpusError(f"{file}:{number}: must have either messages or input")
        if not all(text.strip() for text in entry.texts()):
            raise CorpusError(f"{file}:{number}: has an empty text")
        if entry.messages and entry.messages[-1].role != "user":
            raise CorpusError(f"{file}:{number}: the last message must be the user's")
        found.append(entry)
    if not found:
        raise CorpusError(f"{file}: is empty; every line must be a prompt")
    return found


def measured(entries: list[Entry], data: bytes) -> dict[str, Any]:
    """What the manifest says of a file, but for tokens."""
    size = sum(len(text.encode()) for entry in entries for text in entry.texts())
    return {"prompts": len(entries), "bytes": size, "sha256": hashlib.sha256(data).hexdigest()}


def verify() -> list[str]:
    """Every way in which manifest and files disagree; empty: none."""
    wrong: list[str] = []
    ids: set[str] = set()
    files = {path.name for path in DATA.glob("*.jsonl")}
    for one in manifest().set:
        files.discard(one.file)
        try:
            data = (DATA / one.file).read_bytes()
            found = parse(one.file, data)
        except (OSError, CorpusError) as e:
            wrong.append(str(e))
            continue
        for key, value in measured(found, data).items():
            if getattr(one, key) != value:
                wrong.append(f"{one.file}: the manifest says {key} {getattr(one, key)}, the file has {value}")
        wrong += [f"{one.file}: the id {e.id} is there twice" for e in found if e.id in ids or ids.add(e.id)]  # type: ignore[func-returns-value]
        wrong += [
            f"{one.file}: {e.id} must begin with {one.name}/" for e in found if not e.id.startswith(f"{one.name}/")
        ]
        wrong += [f"{one.name}: the licence must be {LICENCE}"] * (one.licence != LICENCE)
    return wrong + [f"{file} is not in the manifest" for file in sorted(files)]

"""Datasets in files of prompts: vLLM's custom JSONL and ShareGPT's JSON. A file is read and checked as a whole
before anything is sent."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from corpus.bank import BYTES_PER_TOKEN
from corpus.draw import Draw
from corpus.measure import prompt_bytes
from corpus.sources import as_fields
from loadgen.errors import WorkloadError
from loadgen.spec import PromptForm
from loadgen.workload.datasets import Untimed, bounded
from loadgen.workload.model import Options, Prompt

MAX_BYTES: Final = 2 * 2**30
MAX_TOKENS: Final = 10_000_000
LINE: Final = frozenset({"documents", "id", "input", "messages", "output_tokens", "prompt", "query"})
"""Fields of a custom line that are no fields of the request's, or are replaced in it."""
LENGTHS: Final = frozenset({"max_tokens", "max_completion_tokens"})
BOM: Final = b"\xef\xbb\xbf"
UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
HALF: Final = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
TOO_DEEP: Final = "is nested too deep"
NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class PromptList(Untimed):
    """Prompts of a file, in its order or shuffled, without duplicates."""

    def __init__(self, name: str, prompts: list[Prompt], options: Options) -> None:
        self.name = name
        self._prompts = list({prompt_bytes(p.fields) + msgspec.json.encode(p.fields): p for p in prompts}.values())
        self.distinct: int | None = len(self._prompts)
        if not options.disable_shuffle:
            Draw(options.seed, "file").shuffle(self._prompts)

    def prompt(self, number: int) -> Prompt:
        return self._prompts[number]


def custom(options: Options) -> PromptList:
    """vLLM's custom JSONL. `output_tokens` of each line is read with --custom-output-len -1.

    A line's other fields are sent with it: tools, temperature, and a max_tokens that goes before
    --custom-output-len.
    """
    path = path_of(options)
    prompts = []
    for number, line in lines(path):
        where = f"{path}:{number}"
        raw = as_object(line, where)
        ranks = options.endpoint == "rerank"
        fields = _rerank_fields(raw, where) if ranks else prompt_fields(raw, options.form, where)
        own, output = own_fields(raw, options, where)
        name = raw.get("id", f"custom/{number}")
        if not isinstance(name, str | int):
            raise WorkloadError(f"{where}: id must be text")
        prompts.append(Prompt(str(name), options.form, {**own, **bounded(fields, options.form, output)}))
    _distinct_ids(prompts, path)
    return PromptList(f"custom:{Path(path).name}", prompts, options)


def own_fields(raw: dict[str, Any], options: Options, where: str) -> tuple[dict[str, Any], int | None]:
    """A custom line's own fields of the request, and the length of its response by --custom-output-len (-1: by the
    line), unless it has a max_tokens. Raises WorkloadError."""
    own = {key: value for key, value in raw.items() if key not in LINE}
    if own.keys() & LENGTHS:
        return own, None
    return own, _output_tokens(raw, options, where)


def _output_tokens(raw: dict[str, Any], options: Options, where: str) -> int | None:
    if options.custom_output_len != -1:
        return options.custom_output_len
    if "output_tokens" not in raw and options.form != "embeddings":
        raise WorkloadError(f"{where}: has no output_tokens, which --custom-output-len -1 needs on every line")
    return tokens(raw, "output_tokens", where) if "output_tokens" in raw else None


def sharegpt(options: Options) -> PromptList:
    """The first question of each conversation, as in vLLM, with the length of its answer as max_tokens.

    vLLM drops entries without `conversations` and, by its tokenizer, questions under 4 or over 1,024 tokens,
    answers under 4, and sums over 2,048. Here these lengths are estimated from bytes.
    """
    path = path_of(options)
    prompts = []
    for number, turns in enumerate(conversations_of(path), 1):
        where = f"{path}: conversation {number}"
        if len(turns) < 2:
            continue
        values = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
        if not all(isinstance(value, str) for value in values):
            raise WorkloadError(f'{where}: its first two turns must have text under "value"')
        input_tokens, output_tokens = (round(len(str(value).encode()) / BYTES_PER_TOKEN) for value in values)
        output = options.sharegpt_output_len or output_tokens
        if not 4 <= input_tokens <= 1024 or output < 4 or input_tokens + output > 2048:
            continue
        fields = bounded(as_fields(str(values[0]), options.form), options.form, output)
        prompts.append(Prompt(f"sharegpt/{number}", options.form, fields, input_tokens))
    if not prompts:
        raise WorkloadError(f"{path}: no conversation has two turns of a usable length (4 to 1,024 tokens)")
    return PromptList(f"sharegpt:{Path(path).name}", prompts, options)


def conversations_of(path: str) -> Iterator[list[Any]]:
    """The turns of each conversation of a ShareGPT file. Raises WorkloadError."""
    try:
        raw = msgspec.json.decode(read(path))
    except NOT_JSON as e:
        raise WorkloadError(f"{path}: {_position(path, e)}") from None
    if not isinstance(raw, list) or not raw:
        raise WorkloadError(f"{path}: must be a JSON list of conversations (ShareGPT), with at least one")
    for number, one in enumerate(raw, 1):
        turns = one.get("conversations", []) if isinstance(one, dict) else None
        if not isinstance(turns, list):
            raise WorkloadError(f'{path}: conversation {number}: must be an object with a list "conversations"')
        yield turns


def prompt_fields(raw: dict[str, Any], endpoint: PromptForm, where: str) -> dict[str, Any]:
    present = [name for name in ("prompt", "messages", "input") if name in raw]
    if len(present) != 1:
        raise WorkloadError(
            f"{where}: must have exactly one of prompt, messages or input; has {present or 'none'}"
        )
    name, value = present[0], raw[present[0]]
    if name == "messages":
        good = isinstance(value, list) and value
        if not good or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value):
            raise WorkloadError(
                f"{where}: messages must be a list of objects with a role and a content, at least one"
            )
        if endpoint != "chat":
            raise WorkloadError(f"{where}: has messages, which only the chat endpoint accepts, not {endpoint}")
        return {"messages": value}
    if not isinstance(value, str) or not value.strip():
        raise WorkloadError(f"{where}: {name} must be non-empty text")
    return as_fields(value, endpoint)


def _rerank_fields(raw: dict[str, Any], where: str) -> dict[str, Any]:
    query, documents = raw.get("query"), raw.get("documents")
    if not isinstance(query, str) or not isinstance(documents, list) or not documents:
        raise WorkloadError(f"{where}: must have a query and a list of documents, at least one")
    return {"query": query, "documents": documents}


# Lines and values


def path_of(options: Options) -> str:
    if not options.dataset_path:
        raise WorkloadError(f"--dataset-name {options.dataset_name} needs a file: --dataset-path FILE")
    return options.dataset_path


def read(path: str) -> bytes:
    try:
        state = Path(path).stat()
        if state.st_size > MAX_BYTES:
            raise WorkloadError(f"{path}: has {state.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
            raise WorkloadError(f"{path}: is a pipe or a device, and is read more than once: save it as a file")
        data = Path(path).read_bytes().removeprefix(BOM)
    except OSError as e:
        raise WorkloadError(f"{path}: {e.strerror or e}") from None
    if data.startswith(UTF_16):
        raise WorkloadError(f"{path}: is UTF-16; save it as UTF-8")
    if not data.strip():
        raise WorkloadError(f"{path}: is empty; it must hold at least one request")
    return data


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1. Blank lines are skipped."""
    yield from ((number, line) for number, line in enumerate(read(path).split(b"\n"), 1) if line.strip())


def as_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(line)
    except NOT_JSON as e:
        raise WorkloadError(f"{where}: {_words(line, e)}") from None
    if not isinstance(raw, dict):
        raise WorkloadError(f"{where}: must be a JSON object, one per line")
    return raw


def tokens(raw: dict[str, Any], name: str, where: str) -> int:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        raise WorkloadError(
            f"{where}: {name} must be a whole number of tokens, 1 to {MAX_TOKENS:,}; got {value!r:.60}"
        )
    return value


def _distinct_ids(prompts: list[Prompt], path: str) -> None:
    known: dict[str, dict[str, Any]] = {}
    for prompt in prompts:
        if known.setdefault(prompt.id, prompt.fields) != prompt.fields:
            raise WorkloadError(f"{path}: the id {prompt.id!r} is used for two different prompts")


def _position(path: str, error: Exception) -> str:
    """Where a file of one JSON value is broken, by line: msgspec counts bytes."""
    try:
        json.loads(read(path))
    except json.JSONDecodeError as e:
        return f"line {e.lineno}: is not JSON: {e.msg}"
    except UnicodeDecodeError as e:
        return f"is not UTF-8: {e}"
    except RecursionError:
        return TOO_DEEP
    return _words(read(path), error)


def _words(data: bytes, error: Exception) -> str:
    """Why this is not JSON. msgspec may call half of a surrogate pair truncated input."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    half = HALF.search(data) if "truncated" in str(error) or "surrogate" in str(error) else None
    if half is not None:
        return f"is no text: {half[0].decode()} is half of a pair, as of an emoji, without the other half"
    return f"is not JSON: {error}"

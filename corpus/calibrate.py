"""Makes the manifest: counts and hashes the files, and counts tokens by a server's `/tokenize`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable

from corpus.bank import DATA, bank, exactly, one_token_words
from corpus.draw import Draw
from corpus.manifest import (
    LICENCE,
    MANIFEST,
    Composed,
    CorpusError,
    Entry,
    Manifest,
    PromptSet,
    Tokens,
    measured,
    parse,
)
from corpus.measure import quantile

Count = Callable[[str], int]

_COMPOSED_BYTES, _COMPOSED_TEXTS = 2200, 200


def server_count(url: str) -> Count:
    """Counts tokens by asking. Raises CorpusError where the server cannot be asked."""

    def ask(body: dict[str, object]) -> int:
        request = urllib.request.Request(  # noqa: S310 - the URL is the user's own
            f"{url.rstrip('/')}/tokenize", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return len(json.load(answer)["tokens"])

    def count(text: str) -> int:
        try:
            try:
                return ask({"content": text, "add_special": False})
            except urllib.error.HTTPError:
                return ask({"prompt": text, "add_special_tokens": False})
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CorpusError(
                f"{url}/tokenize did not count: {e}; start an engine, such as python -m proxy"
            ) from None

    return count


def calibrated(old: Manifest, count: Count) -> Manifest:
    """The manifest as it should be for the files as they are."""
    sets = []
    for one in old.set:
        data = (DATA / one.file).read_bytes()
        entries = parse(one.file, data)
        values = measured(entries, data)
        sets.append(
            PromptSet(
                one.name, one.file, one.about, LICENCE, one.endpoint, **values, tokens=_tokens(entries, count)
            )
        )
    return Manifest(old.tokenizer, _composed(count), sets)


def _tokens(entries: list[Entry], count: Count) -> Tokens:
    known: dict[str, int] = {}
    sizes, counts = [], []
    for entry in entries:
        for text in entry.texts():
            known[text] = known.get(text) or count(text)
        sizes.append(sum(len(text.encode()) for text in entry.texts()))
        counts.append(sum(known[text] for text in entry.texts()))
    ratio = round(sum(sizes) / sum(counts), 3)
    errors = sorted(abs(size / ratio / n - 1) for size, n in zip(sizes, counts, strict=True))
    mean, ordered = round(sum(counts) / len(counts), 1), sorted(counts)
    return Tokens(
        total=sum(counts),
        mean=mean,
        p50=int(quantile(ordered, 0.5)),
        max=ordered[-1],
        bytes_per_token=ratio,
        error_p50=round(quantile(errors, 0.5), 3),
        error_p90=round(quantile(errors, 0.9), 3),
    )


def _composed(count: Count) -> Composed:
    texts = []
    for number in range(_COMPOSED_TEXTS):
        draw = Draw(0, "calibrate", number)
        texts.append(exactly(draw, bank().kinds[number % len(bank().kinds)], _COMPOSED_BYTES))
    tokens = _tokens([Entry(str(at), input=text) for at, text in enumerate(texts)], count)
    for word in one_token_words():
        if (n := count(f" {word}")) != 1:
            raise CorpusError(f"words.txt: {word!r} has {n} tokens; every word must be one")
    return Composed(
        tokens.bytes_per_token, tokens.error_p50, tokens.error_p90, round(tokens.mean), len(one_token_words())
    )


def write(manifest: Manifest) -> None:
    lines = [
        "# The prompt sets. Written by `python -m corpus calibrate --url URL --write`; `about` is by hand.",
        "# Tokens are of the texts alone, by the tokenizer named here; error_* is of bytes / bytes_per_token.",
        "",
        f"tokenizer = {json.dumps(manifest.tokenizer)}",
        "",
        "[composed]",
        *(f"{name} = {getattr(manifest.composed, name)}" for name in Composed.__struct_fields__),
    ]
    for one in manifest.set:
        lines += ["", "[[set]]"]
        for name in PromptSet.__struct_fields__[:-1]:
            value = getattr(one, name)
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value}")
        if one.tokens:
            inside = ", ".join(f"{name} = {getattr(one.tokens, name)}" for name in Tokens.__struct_fields__)
            lines.append(f"tokens = {{ {inside} }}")
    MANIFEST.write_text("\n".join(lines) + "\n")

"""Reads `ops/Dockerfile`: its instructions, and the image that they describe."""

from __future__ import annotations

import json
import re
import shlex

from tests.ops.kit import OPS

DOCKERFILE = (OPS / "Dockerfile").read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """`[("FROM", "python:…"), …]`, with continued lines joined."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", code)
    return [(line.split(maxsplit=1)[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line]


def last_stage(text: str) -> list[tuple[str, str]]:
    every = instructions(text)
    return every[max(at for at, (word, _) in enumerate(every) if word == "FROM") :]


def only(word: str, text: str = DOCKERFILE) -> str:
    found = [rest for name, rest in last_stage(text) if name == word]
    assert len(found) == 1, f"{word}: {found}"
    return found[0]


def environment(text: str = DOCKERFILE) -> dict[str, str]:
    pairs = (pair.split("=", 1) for pair in shlex.split(only("ENV", text)))
    return {name: value for name, value in pairs if name.startswith("GATEWAY_")}


def health_command(text: str = DOCKERFILE) -> list[str]:
    return [str(word) for word in json.loads(only("HEALTHCHECK", text).partition(" CMD ")[2])]


def copied(text: str) -> list[str]:
    copies = [shlex.split(rest) for word, rest in instructions(text) if word == "COPY" and "--from" not in rest]
    return [source for words in copies for source in words[:-1]]

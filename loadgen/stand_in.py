"""Owns the simplest workload: one prompt, as often as asked.
Must not know datasets: `loadgen/workload/workload.py` reads those.
Called by the CLI for `--prompt TEXT`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.spec import Endpoint


class OnePrompt(msgspec.Struct, frozen=True):
    """As `loadgen.workload.workload.Prompt`."""

    id: str
    endpoint: Endpoint
    fields: dict[str, Any]
    expected_input: int | None = None


class OneItem(msgspec.Struct, frozen=True):
    """As `loadgen.workload.workload.Item`."""

    prompt: OnePrompt
    at_s: float | None = None


class Repeated:
    """The same text for every request: its twins meet in every cache on the way, which the report says."""

    def __init__(self, text: str, endpoint: Endpoint) -> None:
        self.name = "prompt"
        if endpoint == "chat":
            fields: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        else:
            fields = {"prompt" if endpoint == "completions" else "input": text}
        self._item = OneItem(OnePrompt("prompt", endpoint, fields))

    def requests(self) -> Iterator[OneItem]:
        while True:
            yield self._item

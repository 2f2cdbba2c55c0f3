"""Judges the records and writes the page's tables: client by feature, direct beside through. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final

from ops.clients.clients import CLIENTS, SUITES, Client
from ops.clients.run import DIRECT, THROUGH, Record

FEATURES: Final = (
    *("whole", "stream", "usage", "tools", "tools, streamed", "structured"),
    *("Responses", "Responses, streamed", "Responses, chained", "EventSource"),
    *("models", "embeddings", "upload", "image", "abort", "silence", "404", "400"),
)
_PLACE: Final = re.compile(r"(<!-- clients: [^\n]*-->\n).*?(\n<!-- /clients -->)", re.DOTALL)


class Verdict(Enum):
    """The text is a cell: direct, then through."""

    WORKS = "✓ ✓"
    DIRECT_TOO = "✗ ✗"
    THROUGH_ONLY = "✓ **✗**"
    DIRECT_ONLY = "✗ ✓"
    DIFFERENT = "✗ **✗**"  # with another error through the gateway
    UNKNOWN = "?"

    @property
    def bad(self) -> bool:
        """Whether the gateway is to be mended, or nobody knows."""
        return self in (Verdict.THROUGH_ONLY, Verdict.DIFFERENT, Verdict.UNKNOWN)


def judge(words: dict[str, str]) -> Verdict:
    """From the words by target."""
    if not {DIRECT, THROUGH} <= words.keys():
        return Verdict.UNKNOWN
    direct, through = words[DIRECT], words[THROUGH]
    if not through:
        return Verdict.DIRECT_ONLY if direct else Verdict.WORKS
    if not direct:
        return Verdict.THROUGH_ONLY
    return Verdict.DIRECT_TOO if _kind(direct) == _kind(through) else Verdict.DIFFERENT


def _kind(words: str) -> str:
    """The name of the error, without its text: ids and times differ."""
    return words.partition(":")[0]


def bad(record: Record) -> bool:
    return bool(record.trouble) or any(judge(words).bad for words in record.words.values())


def tables(records: Sequence[Record]) -> str:
    by_key = {record.key: record for record in records}
    clients = [(client, by_key[client.key]) for client in CLIENTS if client.key in by_key]
    suites = [(client, by_key[client.key]) for client in SUITES if client.key in by_key]
    lines = [f"| client | version | {' | '.join(FEATURES)} |", "|---|---|" + "---|" * len(FEATURES)]
    for client, record in clients:
        cells = [judge(record.words[one]).value if one in record.words else "" for one in FEATURES]
        lines.append(f"| {client.name} | {record.version} | {' | '.join(cells)} |")
    if suites:
        lines += ["", "| suite | version | tests | pass direct | pass through | through only fail |"]
        lines += ["|---|---|---|---|---|---|"]
    for client, record in suites:
        each = list(record.words.values())
        passed = [sum(words.get(target) == "" for words in each) for target in (DIRECT, THROUGH)]
        only = sum(judge(words) is not Verdict.WORKS and words.get(DIRECT) == "" for words in each)
        lines.append(f"| {client.name} | {record.version} | {len(each)} | {passed[0]} | {passed[1]} | {only} |")
    if words := _words([*clients, *suites]):
        lines += ["", "What did not work:", "", *words]
    return "\n".join(lines)


def _words(records: Sequence[tuple[Client, Record]]) -> list[str]:
    """One line for each error, with those who got it."""
    found: dict[tuple[str, str], list[str]] = {}
    for client, record in records:
        if record.trouble:
            found.setdefault(("all", record.trouble), []).append(client.name)
        for feature, words in record.words.items():
            verdict = judge(words)
            if verdict is not Verdict.WORKS:
                told = words.get(DIRECT) or "nothing"
                if verdict is not Verdict.DIRECT_TOO:
                    told = f"direct: {told}; through: {words.get(THROUGH) or 'nothing'}"
                found.setdefault((feature, _plain(told)), []).append(client.name)
    return [f"- {feature}: `{told}` ({', '.join(names)})" for (feature, told), names in found.items()]


def _plain(words: str) -> str:
    """On one line, without what a code span cannot have."""
    return re.sub(r"\s+", " ", words.replace("`", "'"))[:200]


def page(text: str, made: str) -> str:
    """The page with its generated part replaced. Raises ValueError where it has none."""
    if not _PLACE.search(text):
        raise ValueError("no <!-- clients: … --> in the page")
    return _PLACE.sub(lambda place: f"{place[1]}{made}{place[2]}", text)

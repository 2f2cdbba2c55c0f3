"""Tables about a workload: requested, published and achieved figures side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from corpus.blocks import block_bytes
from corpus.measure import Prefixes, Twins, dispersion, gap_cv, prompt_bytes, quantile

_PLACES = {"gap CV": 2, "rate /s": 2, "dispersion 1 s": 1, "dispersion 10 s": 1}
_SHARES = ("prefix hits", "top tenth", "used once", "duplicates")


class _Request(Protocol):
    @property
    def at(self) -> float: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class Seen:
    """What a workload turned out to be, by the names of the table's rows."""

    figures: dict[str, float]
    requests: int


class Watch:
    """Takes in requests one by one, as they are written."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._lengths: dict[str, list[int]] = {"input": [], "output": []}
        self._twins = Twins()
        self._prefixes = Prefixes(block_bytes())

    def add(self, request: _Request) -> None:
        self._times.append(request.at)
        self._lengths["input"].append(request.input_tokens)
        self._lengths["output"].append(request.output_tokens)
        self._twins.add(dict(request.fields))
        self._prefixes.add(prompt_bytes(dict(request.fields)))

    def seen(self) -> Seen:
        times, count = self._times, len(self._times)
        figures = {
            "rate /s": (count - 1) / times[-1] if count > 1 and times[-1] else math.nan,
            "gap CV": gap_cv(times),
            "dispersion 1 s": dispersion(times, 1),
            "dispersion 10 s": dispersion(times, 10),
        }
        for side, lengths in self._lengths.items():
            ordered = sorted(lengths)
            figures[f"{side} mean"] = sum(ordered) / count if count else math.nan
            figures |= {f"{side} p{p}": quantile(ordered, p / 100) for p in (50, 90, 99)}
        figures |= {
            "prefix hits": self._prefixes.block_share,
            "top tenth": self._prefixes.top_tenth(),
            "used once": self._prefixes.once(),
            "duplicates": self._twins.duplicate_share,
        }
        return Seen(figures, count)


def table(
    seen: Seen, asked: Mapping[str, float], published: Mapping[str, float], notes: Sequence[str] = ()
) -> str:
    """Markdown. `off` compares the achieved figure with the requested one, else with the published one."""
    rows = [["", "asked", "published", "achieved", "off"]]
    for name, value in seen.figures.items():
        target = asked.get(name, published.get(name))
        rows.append([name, _text(name, asked.get(name)), _text(name, published.get(name)), _text(name, value)])
        rows[-1].append(_off(name, value, target))
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    lines = [
        _line(rows[0], widths),
        "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|",
    ]
    lines += [_line(row, widths) for row in rows[1:]]
    lines += [
        "",
        f"{seen.requests:,} requests. Input tokens are estimated from bytes (SmolLM2). Prefix hits are of",
    ]
    lines += [
        f"blocks of 512 tokens ({block_bytes():,} bytes) in an infinite cache; top tenth: the share of reuse that"
    ]
    lines += ["the most used tenth of blocks has; used once: share of different blocks.", *notes]
    return "\n".join(lines)


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(w) if at else cell.ljust(w) for at, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _text(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1%}" if name in _SHARES else f"{value:,.{_PLACES.get(name, 0)}f}"


def _off(name: str, value: float, target: float | None) -> str:
    if target is None or math.isnan(value) or not (target or name in _SHARES):
        return ""
    return f"{100 * (value - target):+.1f} pt" if name in _SHARES else f"{value / target - 1:+.0%}"

"""The results as data, and their tables: medians of the rounds, with the least and the most."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import msgspec

from ops.bench.capacity import hits, memory, streams
from ops.bench.stage import DIRECT
from ops.bench.vllm.tables import Panel, compared, draw, spread


class Result(msgspec.Struct, kw_only=True):
    """What one command measured."""

    command: str
    machine: str  # CPUs, system, Python and date
    versions: dict[str, str]
    seconds: float  # that the command took
    streams: list[streams.Row] = []
    hits: list[hits.Hits] = []
    memory: list[memory.Memory] = []
    failures: list[str] = []  # subjects that could not be measured in a round


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]


def _names(rows: Sequence[streams.Row] | Sequence[memory.Memory]) -> list[str]:
    return list(dict.fromkeys(row.subject for row in rows))


def _whole(rows: Sequence[streams.Row], direct: dict[int, streams.Row]) -> str:
    """`whole`, or what was not, and what the limit was."""
    if not rows:
        return "–"
    if all(row.whole for row in rows):
        return "whole"
    stalls, frames = sum(row.stalls for row in rows), sum(row.frames for row in rows)
    broken, answers = sum(row.broken for row in rows), sum(row.answers + row.broken for row in rows)
    found = [f"{stalls:,} stalls in {frames:,} frames"] if stalls else []
    found += [f"{broken:,} of {answers:,} answers broken"] if broken else []
    limits = {streams.limit(row, direct.get(row.round)) for row in rows} - {""}
    return f"{', '.join(found) or 'no answer'}: {' and '.join(sorted(limits))}"


def _added(rows: Sequence[streams.Row], direct: dict[int, streams.Row], of: Callable[[streams.Row], float]) -> str:
    found = [of(row) - of(direct[row.round]) for row in rows if row.round in direct]
    return compared(found, 2)


def _cpu(rows: Sequence[streams.Row]) -> str:
    return spread([row.cpu_us for row in rows], 1) if rows else "–"


def streams_tables(rows: Sequence[streams.Row]) -> list[str]:
    """What was carried, then latency and CPU by number of streams."""
    names = _names(rows)
    lines = [
        "No stall up to, in every round: "
        + "; ".join(f"{name} {_carried(rows, name)}" for name in names)
        + ". A stall is a gap over twice the pace. *The machine*: direct stalled too, "
        f"client or engine were late by more than {streams.PACE_MS:g} ms, or others used the subject's CPU for "
        f"more than {100 * streams.WAITED:g} % of the time.",
        "",
    ]
    counts = sorted({row.streams for row in rows})
    by = {
        (count, name): [row for row in rows if (row.streams, row.subject) == (count, name)]
        for count in counts
        for name in names
    }
    direct = {count: {row.round: row for row in by.get((count, DIRECT), [])} for count in counts}
    lines += _table(
        ["streams", *names],
        [[f"{count:,}", *(_whole(by[count, name], direct[count]) for name in names)] for count in counts],
    )
    others = [name for name in names if name != DIRECT]
    columns: dict[str, Callable[[int, str], str]] = {
        "TTFT p50 added, ms": lambda count, name: _added(
            by[count, name], direct[count], lambda row: row.ttft_ms[0]
        ),
        "TTFT p99 added, ms": lambda count, name: _added(
            by[count, name], direct[count], lambda row: row.ttft_ms[1]
        ),
        "gap p99 added, ms": lambda count, name: _added(by[count, name], direct[count], lambda row: row.gap_ms[1]),
        "CPU a frame, µs": lambda count, name: _cpu(by[count, name]),
    }
    head = ["streams", *(f"{words}: {name}" for words in columns for name in others)]
    cells = [[f"{count:,}", *(of(count, name) for of in columns.values() for name in others)] for count in counts]
    late = max(max(row.client_late_ms, row.engine_late_ms) for row in rows)
    lines += [
        "",
        *_table(head, cells),
        "",
        f"The client used at most {max(row.client_busy for row in rows):.2f} CPUs; client or engine were late by "
        f"at most {late:.1f} ms; a subject was kept from its CPU for at most "
        f"{100 * max(row.waited for row in rows):.1f} % of the time.",
    ]
    return lines


def _carried(rows: Sequence[streams.Row], name: str) -> str:
    most, limit = streams.carried(rows, name)
    return f"**{most:,}**" + (f" (then {limit})" if limit else " (all that were tried)")


def hits_table(rows: Sequence[hits.Hits]) -> list[str]:
    """Answers a second of one gateway process with one CPU."""
    lines = []
    for kind in dict.fromkeys(row.kind for row in rows):
        of = [row for row in rows if row.kind == kind]
        limits = sorted({hits.limit(row) for row in of})
        lines.append(
            [
                {"stream": "a stream of 128 tokens", "body": "a JSON body"}[kind],
                spread([row.per_s for row in of], 0),
                spread([row.cpu_us for row in of], 0),
                f"{statistics.median(1e6 / row.cpu_us for row in of if row.cpu_us):.0f}",
                spread([row.busy for row in of], 2), spread([row.client_busy for row in of], 2),
                f"{min(row.hit_share for row in of):.1%}", str(sum(row.wrong for row in of)), " and ".join(limits),
            ]
        )  # fmt: skip
    head = "out of Redis;answers/s;CPU µs each;answers/s of a whole CPU;CPUs: gateway;client;hits;wrong;limit"
    return _table(head.split(";"), lines)


def memory_table(rows: Sequence[memory.Memory]) -> list[str]:
    """KB for each stream and each queued request."""
    lines = []
    for name in _names(rows):
        for what in dict.fromkeys(row.what for row in rows if row.subject == name):
            of = [row for row in rows if (row.subject, row.what) == (name, what)]
            words = "an open stream" if what == memory.STREAM else "a queued request"
            lines.append(
                [
                    name, f"{words}, {of[0].count:,} at once", spread([row.each_kb for row in of], 1),
                    spread([row.before_mb for row in of], 0), spread([row.after_mb for row in of], 0),
                ]
            )  # fmt: skip
    return _table(["", "", "KB each", "MB before", "MB with all"], lines)


def markdown(result: Result) -> str:
    """The section of one result."""
    head = f"`{result.command}` ({result.seconds:.0f} s). {result.machine}."
    lines = [f"{head} Medians of the rounds (least to most).", ""]
    if result.streams:
        lines += [*streams_tables(result.streams), ""]
    if result.hits:
        lines += [*hits_table(result.hits), ""]
    if result.memory:
        lines += [*memory_table(result.memory), ""]
    versions = "; ".join(f"{name}: {words}" for name, words in result.versions.items() if name != DIRECT)
    lines += [f"- FAILED {failure}" for failure in result.failures]
    return "\n".join([*lines, f"Versions: {versions}."])


def picture(rows: Sequence[streams.Row]) -> bytes | None:
    """TTFT p99 and gap p99 by number of streams, as SVG; None without matplotlib or rows."""
    names = _names(rows)
    counts = sorted({row.streams for row in rows})

    def panel(title: str, of: Callable[[streams.Row], float], bound: tuple[float, str] | None = None) -> Panel:
        ways = {
            name: {
                float(count): [of(row) for row in rows if (row.subject, row.streams) == (name, count)]
                for count in counts
                if any((row.subject, row.streams) == (name, count) for row in rows)
            }
            for name in names
        }
        return Panel(title, "streams", {float(count): f"{count:,}" for count in counts}, ways, bound)

    if not rows:
        return None
    return draw(
        [
            panel("gap p99, ms", lambda row: row.gap_ms[1], (streams.STALL_MS, "stall")),
            panel("TTFT p99, ms", lambda row: row.ttft_ms[1]),
        ]
    )

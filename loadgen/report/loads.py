"""Tables for what a run's kind of load adds: conversations by turn, cancelled requests and the engine's reaction,
models, and whether both sides of an `ab` answered the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loadgen.analysis import Answers, Cancellations, Conversations, Part, Summary, amount, cell, count, percent
from loadgen.record import CancelCheck, Run
from loadgen.report.tables import Table


def load_tables(run: Run, summary: Summary) -> Iterator[Table]:
    loads = summary.loads
    if loads.answers is not None:
        yield _answers(loads.answers)
    if loads.conversations is not None:
        yield _conversations(loads.conversations)
    if loads.cancellations is not None:
        yield _cancellations(loads.cancellations, run.cancel_checks)
    if loads.models:
        yield Table("By model", ("model", *_COLUMNS), _rows(loads.models))


_COLUMNS = ("n", "completed", "input", "cached", "output", "TTFT p50", "p95", "p99", "TPOT p50", "E2E p50")


def _rows(parts: Mapping[str, Part]) -> list[list[str]]:
    return [
        [name, amount(part.requests), amount(part.completed),
         *(_mean(value) for value in (part.input_tokens, part.cached_tokens, part.output_tokens)),
         *(cell(part.ttft.at(p)) for p in (50, 95, 99)), cell(part.tpot.at(50)), cell(part.e2el.at(50))]
        for name, part in parts.items()
    ]  # fmt: skip


def _mean(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _conversations(conversations: Conversations) -> Table:
    ends = {
        "completed": conversations.completed,
        "failed": conversations.failed,
        "left by their client": conversations.left,
        "cut off by the run's end": conversations.cut,
    }
    note = f"{count(conversations.begun, 'conversation')}: " + ", ".join(
        f"{amount(n)} {name}" for name, n in ends.items() if n
    )
    if conversations.not_sent:
        was = "was" if conversations.not_sent == 1 else "were"
        note += f"; {count(conversations.not_sent, 'request')} of those that ended early {was} not sent"
    notes = [
        note + ".",
        "Input, cached and output are mean tokens; latencies are in ms, without shared responses.",
    ]
    return Table("By turn of a conversation", ("turn", *_COLUMNS), _rows(conversations.turns), notes)


def _cancellations(cancellations: Cancellations, checks: Sequence[CancelCheck]) -> Table:
    rows = [
        ["chosen to be cancelled", amount(cancellations.chosen)],
        [
            "cancelled by the client",
            f"{amount(cancellations.left)}, {amount(cancellations.reached_first_token)} after the first token",
        ],
        ["completed before that", amount(cancellations.completed)],
        ["failed before that", amount(cancellations.failed)],
        *([check.url, check_words(check)] for check in checks),
    ]
    notes = [
        "A cancelled request is neither completed nor failed. Its TTFT and token gaps count if it was cancelled "
        "after a number of tokens; it has no E2E, and its tokens are in no rate."
    ]
    if not checks:
        notes.append(
            "Whether the engine stopped was not checked: no metrics of running requests (--cancel-metrics URL)."
        )
    return Table("Cancelled requests", ("", ""), rows, notes, words=(0, 1))


def check_words(check: CancelCheck) -> str:
    """What the engine's metrics showed."""
    if check.problem is not None:
        return f"DID NOT STOP: {check.problem}"
    words = f"stopped: back at {count(round(check.before), 'request')}"
    if check.settle_s is not None:
        words += f" {check.settle_s:.2f} s after the last one ended"
    if check.readings:
        words += f", in {count(check.readings, 'reading')} never above those in flight"
    return words if check.aborted is None else f"{words}; it counts {check.aborted:g} as aborted"


def _answers(answers: Answers) -> Table:
    rows = [
        ["pairs compared", amount(answers.compared)],
        ["identical answers", f"{percent(answers.share)} ({amount(answers.identical)})"],
    ]
    notes = ["Temperature 0. Numerics that depend on the batch can part two greedy answers where two tokens tie."]
    if answers.at is not None:
        rows.append(["first difference", f"pair {answers.first_pair}, character {answers.at:,}"])
        rows += [["a", repr(answers.a)], ["b", repr(answers.b)]]
    return Table("The same answer at both", ("", ""), rows, notes, words=(0, 1))

"""What a drill's findings say: each answer judged, by the faults that affected it. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ops.drill.fleet.engine import Note
from ops.drill.fleet.faults import TOGETHER, Injection
from ops.drill.fleet.run import IDLE_SECONDS, Findings
from ops.drill.fleet.verdict import KINDS, Answer, Verdict, judge

LEAST_UNCUT: Final = 99.9  # percent of answers that no fault touched which must be exact
LEAST_CUT: Final = 90.0  # percent of streams whose engine or leader was affected
ENDS_CLIENTS: Final = ("killed", "restarted", "link of a gateway", "frozen")
"""Faults of a client's own gateway that may end its connection without a word."""
LeaderOf = Callable[[str], tuple[str, str]]


@dataclass
class Row:
    """Answers under one kind of fault."""

    what: str
    events: int
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def exact(self) -> float:
        """Percent of the answers that nobody left and that began."""
        judged = sum(self.counts[kind] for kind in ("exact", "error", "cut", "wrong"))
        return 100 * self.counts["exact"] / judged if judged else 100.0


@dataclass
class Report:
    rows: list[Row]
    wrong: list[str]
    errors: Counter[str]
    findings: Findings
    tokens: int
    needed: int
    bursts: Counter[int]
    bursts_alone: Counter[int]
    cancels: tuple[list[float], list[float]]
    failures: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": [{"what": row.what, "events": row.events, **row.counts} for row in self.rows],
            "wrong": self.wrong,
            "errors": self.errors,
            "idle_seconds": self.findings.idle,
            "tokens": self.tokens,
            "tokens_that_were_read": self.needed,
            "generations_of_bursts": self.bursts,
            "generations_of_bursts_alone": self.bursts_alone,
            "bursts": self.findings.bursts,
            "cancel_seconds": {"no fault": self.cancels[0], "faults": self.cancels[1]},
            "leaks": self.findings.leaks,
            "faults": self.findings.faults,
            "trouble": self.findings.trouble,
            "failures": self.failures,
        }


def touches(answer: Answer, injection: Injection, leader_of: LeaderOf) -> bool:
    """Whether a fault can have cut an answer: it affected its gateway, its leader or its engine, or Redis while
    another gateway led it. An answer without a fingerprint may come from any."""
    if not injection.over(answer.began, answer.ended):
        return False
    made = [leader_of(mark) for mark in answer.fingerprints]
    known = [(engine, node) for engine, node in made if engine]
    if injection.group == "redis":
        return not known or any(node != answer.node for _, node in known)
    if answer.node in injection.targets or not known:
        return True
    return any(engine in injection.targets or node in injection.targets for engine, node in known)


def own_gateway_ended(answer: Answer, injections: Sequence[Injection]) -> bool:
    return any(
        answer.node in injection.targets
        and any(word in injection.kind for word in ENDS_CLIENTS)
        and injection.over(answer.began, answer.ended)
        for injection in injections
    )


def report_of(
    findings: Findings, leader_of: LeaderOf, tokens: int, notes: Sequence[Note], *, rates: bool = True
) -> Report:
    """`tokens` and `notes`: of all engines. `rates`: whether too few exact answers are a failure."""
    rows: dict[str, Row] = {}
    events = Counter(injection.kind for injection in findings.injections)
    uncut = Row("answers that no fault touched", 0)
    cut = Row("streams whose engine or leader was killed, frozen or cut off", 0)
    everything = Row("all", len(findings.injections))
    wrong: list[str] = []
    errors: Counter[str] = Counter()
    for answer in findings.answers:
        verdict = judge(answer, own_gateway_ended=own_gateway_ended(answer, findings.injections))
        injections = [injection for injection in findings.injections if touches(answer, injection, leader_of)]
        _note(answer, verdict, injections, wrong, errors)
        everything.counts[verdict.kind] += 1
        if not injections:
            uncut.counts[verdict.kind] += 1
        if _cut(answer, injections):
            cut.counts[verdict.kind] += 1
        for kind in {injection.kind for injection in injections}:
            rows.setdefault(kind, Row(kind, events[kind])).counts[verdict.kind] += 1
    for kind in events:
        rows.setdefault(kind, Row(kind, events[kind]))
    read: dict[str, int] = defaultdict(int)
    for answer in findings.answers:
        read[answer.prompt] = max(read[answer.prompt], answer.content.count(" "))
    report = Report(
        [everything, uncut, cut, *(rows[kind] for kind in sorted(rows))],
        wrong,
        errors,
        findings,
        tokens,
        sum(read.values()),
        _bursts(findings, notes, alone=False),
        _bursts(findings, notes, alone=True),
        _cancels(findings, notes),
    )
    report.failures += wrong + findings.leaks + findings.faults + findings.trouble
    if findings.idle and max(findings.idle) > IDLE_SECONDS:
        report.failures.append(f"engines idle {max(findings.idle):.1f} s after the last reader")
    if late := [seconds for seconds in report.cancels[0] if seconds > IDLE_SECONDS]:
        report.failures.append(
            f"{len(late)} generations cancelled up to {max(late):.1f} s after their last reader"
        )
    if rates and uncut.exact < LEAST_UNCUT:
        report.failures.append(f"{uncut.exact:.2f} % of the answers that no fault touched are exact")
    if rates and cut.exact < LEAST_CUT:
        report.failures.append(f"{cut.exact:.1f} % of the streams that lost engine or leader are exact")
    return report


def _bursts(findings: Findings, notes: Sequence[Note], *, alone: bool) -> Counter[int]:
    """Of twins at all gateways at once, where all shared and no fault was there: the number of generations.
    `alone`: where a gateway could not follow a leader meanwhile."""
    generations = Counter(note.prompt for note in notes if note.what == "begin")
    faults = [injection for injection in findings.injections if injection.kind != TOGETHER]
    return Counter(
        generations[burst.prompt]
        for burst in findings.bursts
        if burst.shares
        and burst.alone is alone
        and not any(injection.over(burst.began, burst.ended) for injection in faults)
    )


def _cancels(findings: Findings, notes: Sequence[Note]) -> tuple[list[float], list[float]]:
    """Seconds from the last reader anywhere to the cancelling of a generation: without faults, and with them."""
    answers: dict[str, list[Answer]] = defaultdict(list)
    for answer in findings.answers:
        answers[answer.prompt].append(answer)
    quiet: list[float] = []
    affected: list[float] = []
    for note in notes:
        if note.what != "cancel" or any(each.began < note.at < each.ended for each in answers[note.prompt]):
            continue  # its readers have another generation
        left = max((each.ended for each in answers[note.prompt] if each.ended <= note.at), default=note.at)
        faults = any(
            injection.over(left - 1, note.at) for injection in findings.injections if injection.kind != TOGETHER
        )
        (affected if faults else quiet).append(round(note.at - left, 3))
    return quiet, affected


def _cut(answer: Answer, injections: Sequence[Injection]) -> bool:
    """A stream that had begun, at a gateway that no fault affected, and whose engine or leader one did."""
    return (
        answer.stream
        and bool(answer.fingerprints)
        and any(injection.group != "redis" for injection in injections)
        and not any(answer.node in injection.targets for injection in injections)
    )


def _note(
    answer: Answer, verdict: Verdict, injections: Sequence[Injection], wrong: list[str], errors: Counter[str]
) -> None:
    kinds = ", ".join(sorted({injection.kind for injection in injections})) or "no fault"
    if verdict.kind == "wrong":
        span = f"{answer.began:.2f} to {answer.ended:.2f}"
        wrong.append(
            f"{answer.prompt!r} at {answer.node}, {span}, by {answer.fingerprints}: {verdict.why}; {kinds}"
        )
    elif verdict.kind == "error":
        errors[f"{answer.status} {verdict.why}"] += 1
        if not injections:
            errors[f"{answer.status} {verdict.why} with no fault"] += 1


def _worst(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    return f"{len(seconds)}, half within {sorted(seconds)[len(seconds) // 2]:.2f}, all within {max(seconds):.2f}"


def _counted(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {what}" for what, count in sorted(errors.items())) or "none"


def _generations(bursts: Mapping[int, int]) -> str:
    """How often twins were so many generations."""
    words = (f"{made} generation{'s' * (made != 1)} {times} ×" for made, times in sorted(bursts.items()))
    return ", ".join(words) or "none"


def markdown(report: Report, command: str) -> str:
    """The page."""
    findings = report.findings
    lines = [
        "# A fleet under faults",
        "",
        f"`{command}`: {len(findings.injections)} faults, {len(findings.answers)} answers.",
        "",
        "| under | faults | " + " | ".join(KINDS) + " | exact % |",
        "|---|---|" + "---|" * (len(KINDS) + 1),
    ]
    for row in report.rows:
        counts = " | ".join(str(row.counts[kind]) for kind in KINDS)
        lines.append(f"| {row.what} | {row.events or ''} | {counts} | {row.exact:.2f} |")
    idle = ", ".join(f"{seconds:.1f}" for seconds in findings.idle)
    lines += [
        "",
        f"Errors: {_counted(report.errors)}.",
        f"Engines idle, seconds after the last reader: {idle}.",
        f"Tokens generated: {report.tokens}; that some client has read: {report.needed}.",
        f"Twins at all gateways at once, without a fault: {_generations(report.bursts)};",
        f"where a gateway could not follow a leader meanwhile: {_generations(report.bursts_alone)}.",
        f"Generations cancelled, seconds after their last reader: {_worst(report.cancels[0])} without a fault,",
        f"{_worst(report.cancels[1])} with faults.",
        "",
        "Failures: none." if not report.failures else "Failures:",
        *(f"- {failure[:400]}" for failure in report.failures),
    ]
    return "\n".join(lines) + "\n"

"""The fleet's drill: its judge finds every kind of wrong answer, its report the faults that an answer can have
met, and a small run on real processes ends clean."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.drill.fleet.engine import Ledger, Note
from ops.drill.fleet.faults import Injection
from ops.drill.fleet.readers import Burst
from ops.drill.fleet.report import markdown, report_of, touches
from ops.drill.fleet.run import Findings
from ops.drill.fleet.texts import prompt_of, tokens_of
from ops.drill.fleet.verdict import Answer, Verdict, judge
from tests.kit.networks import network
from tests.kit.patience import run_process

PROMPT = prompt_of("a", 3)
TOKENS = tokens_of(PROMPT)
MADE = "e0 10.0.0.3 10.0.0.2"


def event(text: str = "", finish: str | None = None, **more: Any) -> bytes:
    head = {"id": "c", "created": 1, "model": "m1", "system_fingerprint": MADE}
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps(head | {"choices": [choice]} | more).encode()


def answer(*events: bytes, **facts: Any) -> Answer:
    usual: dict[str, Any] = {"status": 200, "end": "whole", "began": 10.0, "ended": 12.0}
    found = Answer(PROMPT, "n0", **(usual | facts))
    for data in events:
        found.event(data)
    return found


TEXT = [event(token) for token in TOKENS]
WHOLE = [*TEXT, event(finish="stop"), b"[DONE]"]
ERROR = b'{"error": {"message": "no", "type": "t", "code": "upstream_truncated"}}'


def test_an_answer_that_is_right_or_honest() -> None:
    assert judge(answer(*WHOLE, cache="hit"), own_gateway_ended=False) == Verdict("exact", "hit")
    assert judge(answer(*TEXT[:1], ERROR), own_gateway_ended=False) == Verdict("error", "upstream_truncated")
    assert judge(answer(*TEXT[:2], end="left"), own_gateway_ended=False).kind == "left"
    assert judge(answer(*TEXT[:2], end="cut"), own_gateway_ended=True).kind == "cut"
    assert judge(answer(end="refused", status=0), own_gateway_ended=True).kind == "refused"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (answer(TEXT[0], TEXT[2]), "another text"),
        (answer(TEXT[0], TEXT[0]), "another text"),
        (answer(TEXT[1], end="left"), "another text"),
        (answer(*TEXT[:2], event(finish="stop"), b"[DONE]"), "a clean end after"),
        (answer(*TEXT, event(finish="stop")), "without [DONE]"),
        (answer(*TEXT, b"[DONE]"), "0 finish reasons"),
        (answer(*WHOLE, b"[DONE]"), "behind the end"),
        (answer(TEXT[0], ERROR, b"[DONE]"), "behind the end"),
        (answer(TEXT[0], event(TOKENS[1], id="d")), "ids of 2 answers"),
        (answer(*TEXT[:2], end="cut"), "by a gateway that lives"),
        (answer(end="refused", status=0), "by a gateway that lives"),
        (answer(*TEXT[:2], end="hung"), "a hang"),
        (answer(*WHOLE, usage_asked=True), "usage of None"),
        (answer(*TEXT, event(finish="stop", usage={"completion_tokens": 3}), b"[DONE]"), "not asked for"),
        (answer(b"{"), "JSONDecodeError"),
        (answer(b'{"error": {"message": "", "type": "t", "code": null}}'), "without a message"),
        (answer(status=500), "status 500 without an error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_that_is_wrong(found: Answer, why: str) -> None:
    verdict = judge(found, own_gateway_ended=False)
    assert verdict.kind == "wrong"
    assert why in verdict.why


def leader_of(mark: str) -> tuple[str, str]:
    return mark.split(" ")[0], "n1"


@pytest.mark.parametrize(
    ("injection", "met"),
    [
        (Injection("engine killed", "engine", ("e0",), 11.0, 13.0), True),
        (Injection("engine killed", "engine", ("e1",), 11.0, 13.0), False),
        (Injection("leader killed", "gateway", ("n1",), 9.0, 10.5), True),
        (Injection("leader killed", "gateway", ("n2",), 9.0, 10.5), False),
        (Injection("gateway killed", "gateway", ("n0",), 9.0, 10.5), True),
        (Injection("FLUSHALL", "redis", ("r0",), 11.0, 11.5), True),
        (Injection("FLUSHALL", "redis", ("r0",), 12.5, 13.0), False),
    ],
)
def test_the_faults_that_an_answer_can_have_met(injection: Injection, met: bool) -> None:
    assert touches(answer(*WHOLE), injection, leader_of) is met
    if injection.began < 12.0:
        assert touches(answer(), injection, leader_of), "nobody knows yet who makes it"


def test_a_leaders_own_clients_are_not_touched_by_redis() -> None:
    injection = Injection("FLUSHALL", "redis", ("r0",), 11.0, 11.5)
    assert not touches(answer(*WHOLE), injection, lambda mark: ("e0", "n0"))


def test_a_report_fails_for_what_is_wrong_late_or_left_behind() -> None:
    bursts = [Burst(PROMPT, 10.0, 11.0), Burst(PROMPT, 10.0, 11.0, shares=False)]
    bursts.append(Burst(PROMPT, 10.0, 11.0, alone=True))
    findings = Findings([answer(*WHOLE)], idle=[0.2], bursts=bursts)
    notes = [Note(10.0, "begin", PROMPT), Note(13.0, "cancel", PROMPT)]
    report = report_of(findings, leader_of, 4, notes)
    assert (report.failures, report.tokens, report.needed) == ([], 4, 3)
    assert (report.bursts, report.bursts_alone, report.cancels) == ({1: 1}, {1: 1}, ([1.0], []))
    page = markdown(report, "command")
    assert "Failures: none." in page
    assert "Errors: none." in page
    assert "without a fault: 1 generation 1 ×;" in page
    several = replace(report, errors=Counter({"502 upstream": 3}), bursts=Counter({2: 1, 1: 4}))
    assert "Errors: 3 × 502 upstream." in markdown(several, "command")
    assert "without a fault: 1 generation 4 ×, 2 generations 1 ×;" in markdown(several, "command")
    spoil: list[Callable[[Findings], object]] = [
        lambda found: found.answers.append(answer(TEXT[1])),
        lambda found: found.answers.append(answer(*TEXT[:1], ERROR)),
        lambda found: found.idle.append(20.0),
        lambda found: found.leaks.append("a key"),
        lambda found: found.faults.append("a log line"),
        lambda found: found.trouble.append("not undone"),
    ]
    for change in spoil:
        findings = Findings([answer(*WHOLE)], idle=[0.2])
        change(findings)
        assert len(report_of(findings, leader_of, 4, ()).failures) >= 1
    late = report_of(Findings([answer(*WHOLE)]), leader_of, 4, [Note(30.0, "cancel", PROMPT)])
    assert "18.0 s after" in late.failures[0]


def test_what_an_engine_has_made_is_there_after_it_was_killed(tmp_path: Path) -> None:
    """Two processes write one after the other; the count is in a mapped file."""
    for _ in range(2):
        ledger = Ledger(tmp_path, "e0")
        ledger.token(3)
        ledger.note("begin", PROMPT)
        ledger.note("begin", "a probe")
        ledger.close()
    reader = Ledger(tmp_path, "e0")
    assert reader.tokens == 6
    assert [note[1:] for note in reader.notes()] == [("begin", PROMPT)] * 2
    reader.close()


def test_what_one_host_sends_to_another_is_lost_in_one_direction() -> None:
    send = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 9))"
    hear = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.bind((sys.argv[1], 9))\n"
        "s.settimeout(20)\n"
        "import subprocess; subprocess.run(sys.argv[2:], check=True); s.recv(9)"
    )

    def arrives(sender: Any, receiver: Any, seconds: str) -> bool:
        words = [sys.executable, "-c", hear.replace("20", seconds), receiver.address]
        words += [*sender.within, sys.executable, "-c", send, receiver.address]
        return run_process([*receiver.within, *words], capture_output=True, seconds=60).returncode == 0

    with network(2) as (one, other):
        assert arrives(one, other, "20")
        other.drop(one)
        assert not arrives(one, other, "0.3")
        assert arrives(other, one, "20")
        other.take(one)
        assert arrives(one, other, "20")


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_a_small_drill_finds_nothing_wrong(tmp_path: Path) -> None:
    """In hosts of their own where this machine makes them. Its times are no test's: a loaded machine is slow."""
    words = [sys.executable, "-m", "ops.drill.fleet", "--nodes", "2", "--readers", "10"]
    ran = run_process(
        [*words, "--only", "leader killed", "--events", "1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        seconds=200,
    )
    assert "# A fleet under faults" in ran.stdout, ran.stderr
    found = json.loads((tmp_path / "seed-1.json").read_text())
    assert (found["wrong"], found["leaks"], found["faults"]) == ([], [], [])
    assert found["rows"][0]["events"] == 1
    assert found["rows"][0]["exact"] > 0


def test_a_fault_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    words = [sys.executable, "-m", "ops.drill.fleet", "--only", "nonsense"]
    ran = run_process(words, capture_output=True, text=True, seconds=30)
    assert ran.returncode == 2
    assert "no fault contains 'nonsense'; there are: leader killed, " in ran.stderr

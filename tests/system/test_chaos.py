"""The chaos run ends in its time with a row of all it saw; what faults may have touched is told from times."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from ops.chaos.__main__ import arguments, chosen, shares
from ops.chaos.faults import FAULTS, POISONS
from ops.chaos.load import Load, Mix, Result, Timeline, assess
from ops.chaos.report import Row, markdown
from ops.chaos.run import SCENARIOS, SOAK, WEIGHTS
from ops.chaos.stage import REMOVED, Fault
from ops.chaos.verdict import Verdict
from ops.chaos.wire import Ask
from tests.kit.patience import run_process

SHORT = {
    "everything at once": ["--events", "20", "--seconds", "10", "--only", "everything"],
    "soak": ["--events", "20", "--minutes", "0.17"],
}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", SHORT)
def test_a_short_run_ends_and_leaves_no_process(tmp_path: Path, name: str) -> None:
    words = [*SHORT[name], "--clients", "12", "--hung", "10", "--least", "100"]  # a slow machine needs longer
    ran = run_process(
        [sys.executable, "-m", "ops.chaos", *words, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        seconds=140,
        env={**os.environ, "CHAOS_TEST": str(tmp_path)},
    )
    assert ran.returncode in (0, 1), ran.stderr
    (row,) = json.loads((tmp_path / "chaos.json").read_text())["rows"]
    assert sum(row["events"].values()) >= 10
    assert row["kinds"]["exact"] >= 30
    assert ran.returncode == bool(row["kinds"].get("wrong") or row["kinds"].get("hung") or row["left_behind"])
    assert f"| {name} |" in ran.stdout
    assert row["tasks"][0] > 0
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == sum(row["events"].values())
    mine = f"CHAOS_TEST={tmp_path}".encode()
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and mine in environment(pid)] == []


def environment(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_a_word_that_is_in_no_scenario_is_refused_with_those_there_are() -> None:
    ran = run_process(
        [sys.executable, "-m", "ops.chaos", "--only", "nonsense"], capture_output=True, text=True, seconds=30
    )
    assert ran.returncode == 2
    assert "everything at once" in ran.stderr


def test_the_scenarios_share_all_events_and_all_time_and_know_their_faults() -> None:
    assert sum(events for events, _, _ in SCENARIOS.values()) == pytest.approx(1)
    assert sum(seconds for _, seconds, _ in SCENARIOS.values()) == pytest.approx(1)
    assert {name for _, _, weights in SCENARIOS.values() for name in weights} == FAULTS.keys()
    assert chosen("everything") == {"everything at once": (1.0, 1.0)}


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--minutes", "1", "--only", "redis"]])
def test_a_soak_of_no_time_or_of_one_scenario_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments(words)
    assert "--minutes must be above 0" in capsys.readouterr().err


def test_a_soak_has_a_fault_a_second_and_a_folder_of_its_own() -> None:
    args = arguments(["--minutes", "30"])
    assert (args.seconds, args.events, args.out) == (1800, 1800, Path("out/chaos-soak"))
    assert shares(args) == {SOAK: (1.0, 1.0)}
    assert WEIGHTS[SOAK].keys() == FAULTS.keys()


# What a fault may have touched


def one(why: str, kind: str = "error", *, start: float = 100, end: float = 101, cut: bool = False) -> Result:
    return Result(Ask(7), Verdict(kind, why), start, end, cut)  # type: ignore[arg-type]


def touched(result: Result, faults: list[Fault], told: list[tuple[float, int, int, str]]) -> bool:
    assess([result], faults, told, engines=2, bound=20)
    return result.touched


SERVED = [(100.1, 0, 7, "")]


def test_a_fault_touches_what_its_engine_serves_in_that_time() -> None:
    faults = [Fault("engine 0", "killed", 100.5, 102)]
    assert touched(one("error frame"), faults, SERVED)
    assert not touched(one("error frame", start=102.5, end=103), faults, SERVED)
    assert not touched(one("error frame"), faults, [(100.1, 1, 7, "")])


def test_a_lie_touches_those_who_asked_for_that_prompt() -> None:
    assert touched(one("502"), [], [(100.1, 0, 7, "reset")])
    assert not touched(one("502"), [], [(100.1, 0, 8, "reset")])


def test_no_engine_at_all_is_no_excuse_while_one_was_well() -> None:
    first, second = Fault("engine 0", "killed", 100.5, 102), Fault("engine 1", "killed", 99, 99.5)
    assert not touched(one("503 no_backend"), [first], [])
    assert touched(one("503 no_backend"), [first, second], [])


def test_a_fault_that_goes_on_has_no_end() -> None:
    assert touched(one("error frame"), [Fault("redis", "killed", 1.0)], SERVED)


def test_an_engine_that_the_settings_do_not_name_for_a_while_excuses_no_cut_but_is_none_to_ask() -> None:
    removed, killed = Fault("engine 0", REMOVED, 100, 102), Fault("engine 1", "killed", 99, 99.5)
    assert not touched(one("error frame"), [removed], SERVED)
    assert touched(one("503 no_backend"), [removed, killed], [])


def test_faults_are_found_by_their_time_as_by_a_look_at_each() -> None:
    pick = random.Random(1)
    faults = [
        Fault("redis", str(n), start, pick.choice((None, start, start + pick.uniform(0, 9))))
        for n, start in enumerate(pick.uniform(0, 100) for _ in range(60))
    ]
    timeline = Timeline(faults)
    for _ in range(200):
        start = pick.uniform(-5, 105)
        end = start + pick.uniform(0, 5)
        found = {fault.kind for fault in timeline.during(start, end)}
        assert found == {fault.kind for fault in faults if fault.overlaps(start, end)}


def test_a_cut_without_a_fault_is_wrong() -> None:
    result = one("cut in the answer", cut=True)
    assess([result], [], SERVED, engines=2, bound=20)
    assert (result.verdict.kind, result.verdict.why) == ("wrong", "cut, and no fault had touched it")


def test_odd_usage_is_excused_where_an_engine_told_it() -> None:
    right, wrong = one("usage: other numbers", "wrong"), one("usage: other numbers", "wrong")
    assess([right], [], [(100.1, 0, 7, "usage odd")], engines=2, bound=20)
    assess([wrong], [], SERVED, engines=2, bound=20)
    assert (right.verdict.kind, wrong.verdict.kind) == ("exact", "wrong")


def test_time_in_which_the_gateway_was_stopped_is_not_counted_as_hanging() -> None:
    stopped = [Fault("gateway", "stopped", 103, 106)]
    short, long = one("", "hung", end=122), one("", "hung", end=130)
    assess([short, long], stopped, SERVED, engines=2, bound=20)
    assert (short.verdict.kind, long.verdict.kind) == ("left", "hung")


def test_a_sample_that_two_are_told_is_wrong_for_the_second() -> None:
    load = Load("127.0.0.1", 1, 1, 1.0)
    first = load._new(Verdict("exact", "", ("a",)))
    load.results.append(one("", "exact"))
    assert (first.kind, load._new(Verdict("exact", "", ("a",))).kind) == ("exact", "wrong")
    assert load._new(Verdict("exact", "", ("b", "b"))).why == "a sample told twice"


def test_the_load_asks_for_everything() -> None:
    mix = Mix(1)
    asks = [mix.draw() for _ in range(600)]
    assert {ask.endpoint for ask in asks} == {"chat", "completions", "embeddings", "tokenize"}
    assert {(ask.stream, ask.sampled) for ask in asks} == {
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    }
    assert max(Counter(ask.tag for ask in asks).values()) > 3, "nobody asks for the same"
    assert {ask.n for ask in asks} == {1, 2, 3}
    assert any(ask.request_id for ask in asks)


def test_no_poison_is_what_was_stored() -> None:
    import msgspec

    value = msgspec.msgpack.encode(["stream", 1.0, b"5\r\nhello\r\n", None, b"", "text/event-stream", None, None])
    pick = random.Random(1)
    for name, poison in POISONS.items():
        assert poison(value, pick) != value, name


def test_the_page_has_a_row_for_each_scenario_and_says_what_was_wrong() -> None:
    row = Row("a scenario", kinds=Counter(exact=9, wrong=1), events=Counter({"engine killed": 2}))
    row.reasons["wrong: another text"] += 1
    row.untouched, row.untouched_exact = 10, 9
    row.left_behind.append("flights 1")
    page = markdown([row], "head")
    assert "| a scenario | 2 | 10 | 9 | 0 | 0 | **1** | 0 | 1 | 9 of 10 (90.00%) |" in page
    assert "another text 1" in page
    assert "**left behind:** flights 1" in page
    assert row.failed

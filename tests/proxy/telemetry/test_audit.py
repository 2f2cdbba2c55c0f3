"""The audit lines: who, what, with which result; floods bounded, one reason told once, gauges beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from proxy.telemetry.audit import SAME_SECONDS, Audit
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from tests.kit.running import lines
from tests.proxy.telemetry.test_metrics import samples


class Desk:
    def __init__(self, folder: Path) -> None:
        self._path = folder / "log"
        self._log = Log(os.open(self._path, os.O_WRONLY | os.O_CREAT))
        self.metrics = Metrics()
        self.now = 100.0
        self.audit = Audit(self._log, self.metrics, clock=lambda: self.now)

    def lines(self) -> list[dict[str, Any]]:
        self._log.close(30)
        return lines(self._path)


def test_a_reload_is_a_line_a_count_and_a_gauge(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.audit.watches("api_keys_file")
    good = 'gateway_last_reload_successful{file="api_keys_file"}'
    when = 'gateway_last_reload_success_timestamp_seconds{file="api_keys_file"}'
    began = samples(desk.metrics)
    assert began[good] == 1
    assert began['gateway_reloads_total{file="api_keys_file",result="failed"}'] == 0
    desk.audit.not_reloaded("api_keys_file", ("/k",), "file", "/k:3: sha256: wrong")
    failed = samples(desk.metrics)
    assert (failed[good], failed[when]) == (0, began[when])
    desk.audit.reloaded("api_keys_file", ("/k",), "signal", "added: a; removed: b")
    after = samples(desk.metrics)
    assert after[good] == 1
    assert after[when] >= began[when]
    assert after['gateway_reloads_total{file="api_keys_file",result="failed"}'] == 1
    assert after['gateway_reloads_total{file="api_keys_file",result="good"}'] == 1
    bad, fine = desk.lines()
    assert (bad["level"], bad["msg"], bad["event"], bad["who"], bad["result"]) == (
        "error", "not reloaded", "audit", "file", "failed",
    )  # fmt: skip
    assert (bad["setting"], bad["file"], bad["detail"]) == ("api_keys_file", "/k", "/k:3: sha256: wrong")
    assert (fine["msg"], fine["who"], fine["result"], fine["what"]) == (
        "reloaded", "signal", "good", "added: a; removed: b",
    )  # fmt: skip


def test_one_reason_is_told_once_a_minute_and_at_once_to_who_asks(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.audit.watches("deny_file")
    for _ in range(5):
        desk.audit.not_reloaded("deny_file", ("/d",), "file", "wrong")
    desk.audit.not_reloaded("deny_file", ("/d",), "signal", "wrong")
    desk.audit.not_reloaded("deny_file", ("/d",), "file", "worse")
    desk.now += SAME_SECONDS
    desk.audit.not_reloaded("deny_file", ("/d",), "file", "worse")
    told = samples(desk.metrics)
    assert told['gateway_reloads_total{file="deny_file",result="failed"}'] == 8
    assert [line["detail"] for line in desk.lines()] == ["wrong", "wrong", "worse", "worse"]


def test_a_stall_shows_in_the_gauges_until_the_files_answer(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.audit.watches("deny_file")
    good = 'gateway_last_reload_successful{file="deny_file"}'
    desk.audit.stalled(10.0)
    assert samples(desk.metrics)[good] == 0
    desk.audit.answers()
    assert samples(desk.metrics)[good] == 1
    (line,) = desk.lines()
    assert (line["event"], line["result"]) == ("audit", "failed")


def test_a_flood_of_wrong_keys_is_counted_whole_and_told_in_part(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for number in range(10_000):
        desk.audit.refused("unknown", f"10.{number % 200}.0.1", endpoint="chat")
    desk.audit.refused("not_operator", "10.0.0.1", key="team-a", endpoint="metrics")
    told = samples(desk.metrics)
    assert told['gateway_keys_refused_total{reason="unknown"}'] == 10_000
    assert told['gateway_keys_refused_total{reason="not_operator"}'] == 1
    refused = [line for line in desk.lines() if line["msg"] == "key refused"]
    assert 5 <= len(refused) < 1000
    assert all(line["event"] == "audit" and line["result"] == "refused" for line in refused)


def test_an_act_says_who_from_where_and_what(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.audit.acted("cache flushed", "ops", "10.0.0.1", what="m1", removed=3)
    desk.audit.ended({"team-a": 2}, "key_revoked")
    flushed, ended = desk.lines()
    assert (flushed["event"], flushed["who"], flushed["client"], flushed["what"], flushed["removed"]) == (
        "audit", "ops", "10.0.0.1", "m1", 3,
    )  # fmt: skip
    assert (ended["msg"], ended["who"], ended["what"], ended["reason"]) == (
        "requests ended", "team-a", "2 requests", "key_revoked",
    )  # fmt: skip
    assert samples(desk.metrics)['gateway_keys_refused_total{reason="ended"}'] == 2


def test_a_reason_that_returns_after_a_good_reload_or_in_another_file_is_told_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for name in ("deny_file", "config"):
        desk.audit.watches(name)
    desk.audit.not_reloaded("deny_file", ("/d", ""), "file", "wrong")
    desk.now += SAME_SECONDS - 0.1
    desk.audit.not_reloaded("deny_file", ("/d",), "file", "wrong")
    desk.audit.reloaded("deny_file", ("/d", "", "/e"), "file", "1 rule")
    desk.audit.not_reloaded("deny_file", ("/d",), "file", "wrong")
    desk.audit.not_reloaded("config", ("/c",), "file", "wrong")
    told = [(line["msg"], line["file"]) for line in desk.lines()]
    assert told == [
        ("not reloaded", "/d"), ("reloaded", "/d /e"), ("not reloaded", "/d"), ("settings refused", "/c"),
    ]  # fmt: skip


def test_a_first_failure_is_told_though_the_clock_has_just_begun(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.now = 0.0
    desk.audit.watches("deny_file")
    desk.audit.not_reloaded("deny_file", ("/d",), "file", "wrong")
    assert len(desk.lines()) == 1


def test_a_stall_says_how_long_and_a_refusal_who_and_why(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.audit.stalled(10.5)
    desk.audit.refused("not_operator", "10.0.0.1", key="team-a", endpoint="metrics")
    stall, refusal = desk.lines()
    assert stall["detail"] == "reading them has taken 10.5 s so far; the old content stays in effect"
    assert (stall["msg"], stall["who"]) == ("files are not watched", "file")
    found = {name: refusal[name] for name in ("who", "client", "what", "result", "reason")}
    assert found == {
        "who": "team-a", "client": "10.0.0.1", "what": "metrics", "result": "refused", "reason": "not_operator",
    }  # fmt: skip

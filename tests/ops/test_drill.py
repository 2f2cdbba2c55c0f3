"""The drill has a fault for every alert and reports whether each fired. test_watch.py runs some of them."""

from __future__ import annotations

import sys

from ops.drill.faults import FAULTS
from ops.drill.report import Row, markdown
from ops.drill.rules import alerts
from tests.kit.patience import run_process


def test_every_alert_has_one_fault_that_is_made_for_it() -> None:
    assert sorted(name for fault in FAULTS for name in fault.alerts) == sorted(alerts())


def test_a_silent_alert_is_told_as_silent_and_not_counted() -> None:
    rows = [Row("A", "a fault", 1.25, "it burns", "1"), Row("B", "another", None, "there was {}", "")]
    page = markdown(rows, "2.42.0", 200)
    assert "**1 of 2 alerts fired.**" in page
    assert "| A | a fault | 1.2 | it burns |" in page
    assert "| B | another | **did not fire** | there was {} |" in page


def test_a_word_that_is_in_no_fault_is_refused_with_the_alerts_that_there_are() -> None:
    words = [sys.executable, "-m", "ops.drill", "--only", "nonsense", "--prometheus", sys.executable]
    ran = run_process(words, capture_output=True, text=True, seconds=30)
    assert ran.returncode == 2
    assert "no fault contains 'nonsense'" in ran.stderr
    assert "GatewayRedisAway" in ran.stderr


def test_without_prometheus_it_says_what_to_install() -> None:
    words = [sys.executable, "-m", "ops.drill", "--prometheus", "no-such-program"]
    ran = run_process(words, capture_output=True, text=True, seconds=30)
    assert ran.returncode == 2
    assert "apt-get install --no-install-recommends prometheus" in ran.stderr


def test_a_part_that_the_measurement_of_workers_does_not_have_is_refused_with_those_that_it_has() -> None:
    words = [sys.executable, "-m", "ops.drill.workers", "nonsense"]
    ran = run_process(words, capture_output=True, text=True, seconds=30)
    assert ran.returncode == 2
    assert "unknown part 'nonsense'; there are spread, replace, limits, killed, frozen" in ran.stderr

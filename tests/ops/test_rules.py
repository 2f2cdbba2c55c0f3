"""promtool checks `ops/prometheus`, and each alert has a summary, a description and a runbook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ops.drill.rules import FOLDER, alerts, scaled, sections
from tests.kit.missing import PROMETHEUS
from tests.kit.patience import run_process
from tests.ops.kit import tool


def promtool(*words: str) -> str:
    ran = run_process([tool("promtool", PROMETHEUS), *words], capture_output=True, text=True, seconds=50)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return f"{ran.stdout}{ran.stderr}"


def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    said = promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert said.count("rules found") == len(list((FOLDER / "rules").glob("*.yml"))) == 2


def test_prometheus_takes_the_configuration_for_kubernetes(tmp_path: Path) -> None:
    """Debian's promtool does not know Kubernetes, so it gets a target in place of the discovery."""
    text = (FOLDER / "kubernetes.yml").read_text()
    discovery = re.compile(r"    kubernetes_sd_configs:\n      - role: pod\n        namespaces: .*\n")
    assert len(discovery.findall(text)) == 1
    assert re.findall(r"- job_name: (\w+)", text) == ["gateway"], "the rules look for this job"
    copy = tmp_path / "kubernetes.yml"
    copy.write_text(discovery.sub("    static_configs: [{ targets: [pod] }]\n", text))
    assert "is valid" in promtool("check", "config", str(copy))


@pytest.mark.parametrize("path", sorted((FOLDER / "tests").glob("*.yml")), ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: object) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    said: dict[str, set[str]] = {}
    for path in (FOLDER / "tests").glob("*.yml"):
        text = path.read_text()
        for name, value in re.findall(r'alertname="(\w+)".*?\n.*?\n.*?value: (\d)', text):
            said.setdefault(name, set()).add(value)
    assert {name: said.get(name) for name in alerts()} == {name: {"0", "1"} for name in alerts()}


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_is_wrong_and_where_the_runbook_is(name: str) -> None:
    text = sections()[name]
    assert f"runbook_url: ops/docs/troubleshooting.md#{name.lower()}\n" in text
    assert re.search(r"severity: (critical|warning|info)\b", text)
    assert re.search(r"summary: '.{20,}'", text)
    assert re.search(r"description: '.{20,}'", text)


def test_the_windows_of_rules_are_scaled_and_nothing_else() -> None:
    text = "expr: rate(a{le=\"2.5\"}[5m]) > 14.4 and b:rate1h > 20\nfor: 1m\ndescription: '5m of it'\n"
    assert scaled(text, 300) == (
        "expr: rate(a{le=\"2.5\"}[1000ms]) > 14.4 and b:rate1h > 20\nfor: 200ms\ndescription: '5m of it'\n"
    )
    assert scaled("x[3d]", 300) == "x[864000ms]"

"""The troubleshooting page only names existing metrics, flags, settings, errors, log events and anchors."""

from __future__ import annotations

import re

import pytest

from proxy.config.settings import options
from proxy.errors import Code
from tests.ops.kit import OPS, ROOT, documents

PAGE = (OPS / "docs" / "troubleshooting.md").read_text()
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "proxy").rglob("*.py")))
STRINGS = set(re.findall(r'"([^"\n]+)"', SOURCE))
DEPLOYED = "\n".join(
    path.read_text() for path in sorted(OPS.rglob("*")) if path.suffix in (".yaml", ".service", ".example")
)

# Flags and codes of other programs, which only their own makers can hold.
FOREIGN_FLAGS = {
    *("--api-key", "--host", "--enforce-eager", "--gpu-memory-utilization", "--tensor-parallel-size"),
    *(
        "--enable-prefix-caching",
        "--enable-chunked-prefill",
        "--runtime",
        "--rm",
        "--gpus",
        "--latency",
        "--pid",
        "--nofile",
    ),
}
OPERATORS_ERRORS = (401, 408, 413, 429, 431, 500, 502, 503, 504)
EVENTS = (
    *("engine up", "engine down", "engine breaker closed", "redis back", "limits are shared again"),
    *("internal error", "reloaded", "not reloaded", "content denied", "stopping", "drained"),
    *("settings need a restart", "settings refused", "log lines dropped"),
)
OWN_FLAGS = {"--config", "--check-config"}


def unknown_metrics(text: str) -> list[str]:
    named = set(re.findall(r"(?<!:)\bgateway_[a-z_]+", text))  # `job:gateway_…` is a recording rule
    roots = {re.sub(r"_(bucket|sum|count)$", "", name.removeprefix("gateway_")) for name in named}
    return sorted(root for root in roots if root not in STRINGS and root != "") + [
        name for name in re.findall(r"\bprocess_[a-z_]+", text) if name not in STRINGS
    ]


def unknown_flags(text: str) -> list[str]:
    known = {option.flag for option in options()} | OWN_FLAGS | FOREIGN_FLAGS
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - known)


def unknown_variables(text: str) -> list[str]:
    known = {name for option in options() for name in option.env} | {"GATEWAY_PUBLISH"}
    return sorted(set(re.findall(r"\bGATEWAY_[A-Z_]+", text)) - known)


def unknown_errors(text: str) -> list[str]:
    codes = {code.code: code.status for code in Code}
    found = re.findall(r"\b([1-5]\d\d) `(\w+)`|`(\w+)` ([1-5]\d\d)\b", text)
    pairs = [(int(a or d), b or c) for a, b, c, d in found]
    return [f"{status} {code}" for status, code in pairs if codes.get(code) != status]


def unknown_events(text: str) -> list[str]:
    """Log events in the quoted lines and in the text."""
    shown = re.findall(r'"msg":"([^"]+)"', text)
    assert [event for event in EVENTS if f"`{event}`" not in text] == [], "the page no longer speaks of it"
    return [event for event in (*shown, *EVENTS) if event not in STRINGS]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(text: str) -> list[str]:
    return sorted(set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors(text))


def dead_files(text: str) -> list[str]:
    named = set(re.findall(r"\bops/[\w./-]*\w", text)) - {"ops/.env"}
    if not (OPS / "prometheus").exists():  # another part of the tree
        named = {name for name in named if not name.startswith("ops/prometheus")}
    return sorted(name for name in named if not (ROOT / name).exists())


def alerts(rules: str) -> dict[str, str]:
    """The `runbook_url` of each alert."""
    (every,) = documents(rules)
    found = [rule for group in every["groups"] for rule in group["rules"] if "alert" in rule]
    return {rule["alert"]: rule.get("annotations", {}).get("runbook_url", "") for rule in found}


def without_runbook(rules: str, page: str) -> list[str]:
    """Alerts whose `runbook_url` is not an anchor of the page."""
    known = {f"ops/docs/troubleshooting.md#{anchor}" for anchor in anchors(page)}
    return [name for name, url in alerts(rules).items() if not any(url.endswith(end) for end in known)]


def runbooks(page: str) -> set[str]:
    return set(re.findall(r"^### (\w+)$", page.partition("\n# Alerts\n")[2], re.MULTILINE))


def test_it_names_only_what_there_is() -> None:
    assert unknown_metrics(PAGE) == []
    assert unknown_flags(PAGE) == []
    assert unknown_variables(PAGE) == []
    assert unknown_errors(PAGE) == []
    assert unknown_events(PAGE) == []
    assert dead_links(PAGE) == []
    assert dead_files(PAGE) == []


def test_what_it_says_of_compose_is_in_the_files() -> None:
    for name in ("VLLM_HOST", "USE_GPU", "MODEL", "MAX_MODEL_LEN", "HF_TOKEN", "VLLM_IMAGE", "VLLM_CPU_MEMORY",
                 "VLLM_CPU_KVCACHE_SPACE", "REDIS_PASSWORD"):  # fmt: skip
        assert name in PAGE
        assert name in DEPLOYED, name
    for words in ("stop_grace_period: 40s", "terminationGracePeriodSeconds: 45", "TimeoutStopSec=40"):
        assert words in PAGE
        assert words in DEPLOYED, words


@pytest.mark.parametrize("code", sorted(code.code for code in Code if code.status in OPERATORS_ERRORS))
def test_each_error_of_overload_and_of_engines_is_spoken_of(code: str) -> None:
    assert f"`{code}`" in PAGE


@pytest.mark.parametrize(
    ("text", "check", "found"),
    [
        ("`gateway_queue_depths`", unknown_metrics, ["queue_depths"]),
        ("`--first-token-timeouts`", unknown_flags, ["--first-token-timeouts"]),
        ("`GATEWAY_PORTS`", unknown_variables, ["GATEWAY_PORTS"]),
        ("503 `queue_fill`", unknown_errors, ["503 queue_fill"]),
        ("429 `queue_full`", unknown_errors, ["429 queue_full"]),
        ("## A b\n[x](#a-b) [x](#a-c)", dead_links, ["a-c"]),
        ("`ops/compose.yml`", dead_files, ["ops/compose.yml"]),
        (PAGE + '{"msg":"engine gone"}', unknown_events, ["engine gone"]),
    ],
)
def test_each_look_finds_what_is_not_there(text: str, check: object, found: list[str]) -> None:
    assert callable(check)
    assert check(text) == found


def test_every_alert_leads_to_a_part_of_it() -> None:
    alert = "{alert: X, expr: up, annotations: {runbook_url: 'ops/docs/troubleshooting.md#%s'}}"
    rules = f"groups: [{{name: a, rules: [{alert}]}}]"
    assert without_runbook(rules % "queue-full", PAGE) == []
    assert without_runbook(rules % "queue-empty", PAGE) == ["X"]
    written = sorted((OPS / "prometheus").rglob("rules/*.yml"))
    assert written
    recorded = set(re.findall(r"record: (\S+)", "".join(path.read_text() for path in written)))
    assert set(re.findall(r"\bjob:\w+:\w+", PAGE)) <= recorded
    assert [name for path in written for name in without_runbook(path.read_text(), PAGE)] == []
    assert runbooks(PAGE) == {name for path in written for name in alerts(path.read_text())}

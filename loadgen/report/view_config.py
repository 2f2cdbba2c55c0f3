"""A run's configuration as rows: command, machine, what was sent, every setting."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from loadgen.record import Run


def config_rows(run: Run) -> list[tuple[str, str]]:
    """(setting, value) of every setting that is set."""
    facts: dict[str, Any] = {
        "command": shlex.join(run.command),
        "seed": run.seed,
        "workers": run.workers,
        **{f"target {name}": url for name, url in run.targets.items()},
        **{f"machine {key}": value for key, value in run.machine.items()},
        **{f"sent {key}": value for key, value in run.sent_stats.items()},
        **run.config,
    }
    pairs = ((key.replace("_", " "), _plain(value)) for key, value in facts.items())
    return [(key, text) for key, text in pairs if text]


def _plain(value: Any) -> str:
    """A setting as text; empty for None, an empty list and an empty table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:,.6g}"
    return "" if value is None else str(value)

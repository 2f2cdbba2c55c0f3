"""The settings of a run that applied, as a report shows them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from loadgen.record import Run

ELSEWHERE: Final = frozenset(
    {
        "a",
        "b",
        "base_url",
        "chosen_by_probe",
        "command",
        "engine_metrics",
        "host",
        "label",
        "limit",
        "model",
        "port",
        "probed_response",
        "seed",
        "workers",
    }
)
"""Settings that a report shows under another name, or that are results."""
SHOWING: Final = frozenset({"json", "quiet", "result_dir"})
"""What only changes how results are shown."""
OF_DATASET: Final[Mapping[str, str]] = {
    "corpus_": "corpus",
    "custom_": "custom",
    "prefix_repetition_": "prefix_repetition",
    "random_": "random",
    "sharegpt_": "sharegpt",
    "trace_": "trace",
}
"""Prefix of a setting -> the dataset that it is for."""
OF_FILES: Final = frozenset({"burstgpt", "custom", "recording", "sharegpt", "trace"})
NEEDED: Final[Mapping[str, str]] = {
    "burstiness": "request_rate",
    "cancel_within": "cancel",
    "history": "turns",
    "image_size": "images",
    "think_time": "turns",
    "grace_seconds": "max_seconds",
    "unique_salt": "unique",
    "zipf": "duplicates",
}
"""Setting -> the one without which it means nothing."""


def settings_rows(run: Run) -> list[tuple[str, str]]:
    """(setting, value) of every setting that applied."""
    chosen = run.config.get("chosen_by_probe") or ()
    facts: dict[str, Any] = {
        "command": shlex.join(run.command),
        "model": run.model,
        "seed": run.seed,
        "workers": run.workers,
        **{f"target {name}": url for name, url in run.targets.items()},
        **{f"machine {key}": value for key, value in run.machine.items()},
        **{f"sent {key}": value for key, value in run.sent_stats.items()},
        **_applied(run.config),
    }
    pairs = ((key, plain(value)) for key, value in facts.items())
    return [
        (key.replace("_", " "), f"{text} (chosen by the probe)" if key in chosen else text)
        for key, text in pairs
        if text
    ]


def _applied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those of other datasets and other kinds of load, and without those that are off."""
    dataset = config.get("dataset_name") or ("prompt" if config.get("prompt") is not None else "corpus")
    kept = {
        name: value for name, value in config.items() if value not in (None, False, 0, "", [], {}) or value is True
    }
    if not any("rerank" in str(config.get(name)) for name in ("backend", "endpoint")):
        kept.pop("rerank_documents", None)
    if not (kept.get("lora_modules") or kept.get("model_mix")):
        kept.pop("lora_assignment", None)
    if dataset not in OF_FILES:
        kept.pop("disable_shuffle", None)
    if kept.get("request_rate") == "inf" and kept.get("max_concurrency"):
        kept.pop("request_rate")  # a closed loop has no rate
    if "start_rate" in kept or "rates" in kept:
        kept.pop("start_rate" if "rates" in kept else "rates", None)
        rate = kept.pop("request_rate", None)  # a sweep's is that of each stage
    else:
        rate = kept.get("request_rate")
    rate = kept.get("conversation_rate") or rate
    given = {**kept, "request_rate": rate if rate != "inf" else None}
    return {
        name: value
        for name, value in kept.items()
        if name not in ELSEWHERE | SHOWING
        and all(owner == dataset or not name.startswith(prefix) for prefix, owner in OF_DATASET.items())
        and (name not in NEEDED or given.get(NEEDED[name]))
    }


def plain(value: Any) -> str:
    """A setting as text; empty for None, an empty list and an empty table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(each)}" for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(plain, value))
    if isinstance(value, float):
        return f"{value:,.6g}"
    return "" if value is None else str(value)

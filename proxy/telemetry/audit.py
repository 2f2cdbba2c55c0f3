"""Audit lines: acts of operators, reloads, refused keys; each with who, what and the result. They name keys and
addresses, never a key or its hash."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics

SAME_SECONDS: Final = 60.0  # one reason of a failed reload is logged once in this time
Refusal = Literal["missing", "unknown", "expired", "not_operator"]


class Audit:
    """One line per act, with `event: "audit"`. Refusals are rate-limited in the log, and all counted."""

    def __init__(self, log: Log, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._failures: dict[str, tuple[str, float]] = {}
        self._good: dict[str, bool] = {}
        self._since: dict[str, float] = {}
        self._stalled = False

    # -- files --------------------------------------------------------------------------------------

    def watches(self, name: str) -> None:
        """A file is loaded at the start and watched from now on."""
        self._good[name], self._since[name] = True, time.time()
        labels = {"file": name}
        self._metrics.gauge(
            "last_reload_successful",
            "1: the file on disk is in effect; 0: its last reload failed.",
            lambda: int(self._good[name] and not self._stalled),
            labels,
        )
        self._metrics.gauge(
            "last_reload_success_timestamp_seconds",
            "Unix time of the last successful load.",
            lambda: self._since[name],
            labels,
        )
        for result in ("good", "failed"):
            self._metrics.reloads(name, result, 0)

    def reloaded(self, name: str, paths: Sequence[str], who: str, changed: str) -> None:
        self._failures.pop(name, None)
        self._good[name], self._since[name] = True, time.time()
        self._metrics.reloads(name, "good")
        self._tell("info", "reloaded", who, "good", setting=name, file=" ".join(filter(None, paths)), what=changed)

    def not_reloaded(self, name: str, paths: Sequence[str], who: str, reason: str) -> None:
        """A reload failed; the old content stays in effect. A repeated reason is logged once a minute."""
        self._good[name] = False
        self._metrics.reloads(name, "failed")
        now = self._clock()
        last, at = self._failures.get(name, ("", 0.0))
        if last == reason and now - at < SAME_SECONDS and who != "signal":
            return
        self._failures[name] = reason, now
        msg = "settings refused" if name == "config" else "not reloaded"
        self._tell("error", msg, who, "failed", setting=name, file=" ".join(filter(None, paths)), detail=reason)

    def stalled(self, seconds: float) -> None:
        """Reading the files has taken `seconds` so far: no change is noticed until it is done."""
        self._stalled = True
        detail = f"reading them has taken {seconds:g} s so far; the old content stays in effect"
        self._tell("error", "files are not watched", "file", "failed", detail=detail)

    def answers(self) -> None:
        """The file system has answered."""
        self._stalled = False

    # -- keys ---------------------------------------------------------------------------------------

    def refused(self, reason: Refusal, address: str, *, key: str = "", endpoint: str = "") -> None:
        """A request was refused because of its API key, or because it has none."""
        self._metrics.key_refused(reason)
        self._log.often(
            "info", "key refused", address,
            event="audit", who=key, client=address, what=endpoint, result="refused", reason=reason,
        )  # fmt: skip

    def ended(self, names: dict[str, int], reason: str) -> None:
        """Requests in flight were cut because their keys are no longer valid: {key name: number}."""
        for name, count in names.items():
            self._metrics.key_refused("ended", count)
            self._tell("info", "requests ended", name, "ended", what=f"{count} requests", reason=reason)

    # -- operators ----------------------------------------------------------------------------------

    def acted(self, act: str, who: str, address: str, *, result: str = "good", **fields: object) -> None:
        """An act of an operator."""
        self._tell("info", act, who, result, client=address, **fields)

    def _tell(self, level: str, msg: str, who: str, result: str, **fields: object) -> None:
        self._log.event(level, msg, event="audit", who=who, result=result, **fields)

"""What the process tells of itself: each number from its own place in what the kernel says."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from proxy.telemetry.metrics import Metrics


def numbers() -> dict[str, float]:
    page = Metrics().render("")[0].decode()
    lines = (line.partition(" ") for line in page.splitlines() if line.startswith("process_"))
    return {name: float(value) for name, _, value in lines}


def test_each_number_is_the_kernel_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "100 20 3 4 0 5 0")
    monkeypatch.setattr(os, "listdir", lambda path: ["0", "1", "2", "7"])
    monkeypatch.setattr(resource, "getrlimit", lambda what: (30, 40))
    monkeypatch.setattr(resource, "getpagesize", lambda: 1000)
    monkeypatch.setattr(time, "process_time", lambda: 1.5)
    assert numbers() == {
        "process_resident_memory_bytes": 20_000,
        "process_cpu_seconds_total": 1.5,
        "process_open_fds": 4,
        "process_max_fds": 30,
    }


def test_the_kernel_is_asked_for_this_process() -> None:
    found = numbers()
    size, resident = (
        int(word) * resource.getpagesize() for word in Path("/proc/self/statm").read_text().split()[:2]
    )
    assert 0.5 * resident < found["process_resident_memory_bytes"] < size
    assert found["process_cpu_seconds_total"] <= time.process_time()
    assert found["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]

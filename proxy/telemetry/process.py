"""Metrics of the process under the names that every Prometheus client uses: memory, CPU and file descriptors."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from proxy.telemetry.series import ReadCounter, ReadGauge


def process_gauges(gauge: Callable[[str, str], ReadGauge], counter: Callable[[str, str], ReadCounter]) -> None:
    """Register them. `gauge` and `counter` make one by its name and its help text."""
    page = resource.getpagesize()
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.").read_by(
        lambda: int(Path("/proc/self/statm").read_text("ascii").split()[1]) * page, {}
    )
    counter("process_cpu_seconds_total", "Total user and system CPU time in seconds.").read_by(
        time.process_time, {}
    )
    gauge("process_open_fds", "Number of open file descriptors.").read_by(
        lambda: len(os.listdir("/proc/self/fd")), {}
    )
    gauge("process_max_fds", "Maximum number of open file descriptors.").read_by(
        lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0], {}
    )

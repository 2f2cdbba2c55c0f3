"""File descriptors of the process: raises the soft limit, and divides it between clients and engines."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from typing import Final

RESERVE: Final = 64  # for Redis, polls, the log, files; besides one for each engine
BACKLOG: Final = 1024
LEAST_BACKLOG: Final = 8
"""The connections of the listener's backlog are accepted in one event-loop iteration, before any over the limit is
closed: each needs a descriptor."""


@dataclass(frozen=True, slots=True)
class DescriptorBudget:
    """The numbers for which there are descriptors."""

    clients: int  # connections
    backlog: int  # of the listener
    warning: str = ""


def raise_limit() -> None:
    """The soft limit becomes the hard one: a shell's or systemd's 1,024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # macOS allows less than its hard limit; the limit stays, and a warning is logged


def limit() -> int:
    """The limit of descriptors of this process; a large number where there is none."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft >= 0 else 2**31


def in_use() -> int:
    """The number of open descriptors."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 16


def descriptor_budget(limit: int, used: int, *, clients: int, engines: int, inflight: int) -> DescriptorBudget:
    """How many of `clients` connections may be open, so that each can also have one to an engine: at most
    `inflight` to each engine. Each engine connection in use belongs to a client's."""
    upstream = min(clients, engines * inflight)
    reserve = RESERVE + engines
    if used + clients + upstream + reserve <= limit:
        return DescriptorBudget(clients, BACKLOG)
    room = max(0, limit - used)
    spare = min(reserve, room // 4)
    backlog = min(BACKLOG, max(LEAST_BACKLOG, room // 8))
    left = max(2, room - spare - backlog)
    fewer = min(clients, max(1, left - min(upstream, left // 2)))
    return DescriptorBudget(
        fewer,
        backlog,
        f"max_connections = {clients}, {upstream} connections to engines and a reserve of {reserve} need "
        f"{used + clients + upstream + reserve} file descriptors, but the limit is {limit} (ulimit -n): "
        f"{fewer} client connections are taken",
    )

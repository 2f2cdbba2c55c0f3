"""CPU time and memory of a process tree, read from /proc (Linux only)."""

from __future__ import annotations

import os
from pathlib import Path


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text("ascii", "replace")
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting.extend(children.get(one, []))
    return found


def alive(pid: int) -> bool:
    """Whether the process runs: it exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of the tree in nanoseconds, kernel included (first field of `schedstat`).

    Threads that have ended are not counted: no thread may end during the measured span.
    """
    total = 0
    for one in tree(pid):
        for path in Path(f"/proc/{one}/task").glob("*/schedstat"):
            try:
                total += int(path.read_text("ascii").split()[0])
            except OSError:
                continue
    return total


def waited_ns(pid: int) -> int:
    """Time in which threads of the tree could run and had no CPU, in nanoseconds (second field of `schedstat`)."""
    total = 0
    for one in tree(pid):
        for path in Path(f"/proc/{one}/task").glob("*/schedstat"):
            try:
                total += int(path.read_text("ascii").split()[1])
            except OSError:
                continue
    return total


def stolen_s(cpu: int) -> float:
    """Seconds since boot in which the host ran something else on that CPU (`steal` of /proc/stat)."""
    for line in Path("/proc/stat").read_text("ascii").splitlines():
        if line.startswith(f"cpu{cpu} "):
            return int(line.split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def user_share(pid: int) -> tuple[int, int]:
    """(user, system) clock ticks of the tree."""
    user = system = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        user += int(fields[11])
        system += int(fields[12])
    return user, system


def rss_mb(pid: int, *, children: bool = True) -> float:
    """Resident memory of the tree, or of the process alone, in MB (10^6 bytes)."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for one in tree(pid) if children else [pid]:
        try:
            total += int(Path(f"/proc/{one}/statm").read_text("ascii").split()[1]) * page
        except OSError:
            continue
    return total / 1e6


def open_fds(pid: int) -> int:
    """Open file descriptors of the tree."""
    return sum(len(os.listdir(f"/proc/{one}/fd")) for one in tree(pid))

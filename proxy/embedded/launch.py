"""Ties a child to its parent, `python -m proxy.embedded.launch PARENT_PID COMMAND…`: whatever ends the parent,
SIGKILL included, ends the child. The process becomes the command."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the kernel was told
        sys.exit(1)


def main() -> None:
    command = sys.argv[2:]
    tie(int(sys.argv[1]))
    os.execvp(command[0], command)  # noqa: S606 - no shell


if __name__ == "__main__":
    main()

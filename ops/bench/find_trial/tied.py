"""Ties a command to its parent, `python -m ops.bench.find_trial.tied COMMAND…`: when the standard input ends, as
it does whatever ends the parent, SIGKILL included, the process group is killed. The parent starts it in a session
of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def end_with_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    threading.Thread(target=end_with_input, daemon=True).start()
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    code = child.wait()
    os._exit(code if code >= 0 else 128 - code)  # the thread still reads


if __name__ == "__main__":
    main()

"""The entry of `python -m proxy` and of the console script `streaming-gateway`. It imports late: signals are
handled first, and help, version and wrong settings need no more than the settings."""

from __future__ import annotations

import os
import signal
import sys


def command() -> int:
    """Run the program. Returns its exit code; 2 is a wrong setting, or what keeps it from starting."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # before the imports, which take most of the start-up time
    if "--check-config" not in sys.argv:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))  # nothing has started yet
    from proxy.terminal import run

    return run("proxy", main)


def main() -> int:
    from proxy.config import load, program_name
    from proxy.errors import SettingsError
    from proxy.terminal import SAY_SECONDS, say

    try:
        settings = load(sys.argv[1:], os.environ, prog=program_name(sys.argv[0], "proxy"))
        from proxy import program

        return program.print_checked(settings) if "--check-config" in sys.argv[1:] else program.start(settings)
    except SettingsError as e:
        say("".join(f"proxy: {line}\n" for line in str(e).splitlines()), wait=SAY_SECONDS)
        return 2


if __name__ == "__main__":
    sys.exit(command())

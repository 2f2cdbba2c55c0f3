"""Ctrl-C during a run: the first one ends it and writes the report, a second one ends the program."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from signal import SIGINT, SIGTERM


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at the first SIGINT or SIGTERM; later ones have their default effect."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        print("\nending the run and writing the report (Ctrl-C again: stop without a report)", file=sys.stderr)
        stop()
        for number in (SIGINT, SIGTERM):
            loop.remove_signal_handler(number)

    for number in (SIGINT, SIGTERM):
        loop.add_signal_handler(number, on_signal)

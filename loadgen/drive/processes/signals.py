"""Ctrl-C during a run: the first one ends it and writes the report, a second one ends the program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from signal import SIGINT, SIGTERM


def stop_on_signals(stop: Callable[[], None], say: Callable[[str], None]) -> None:
    """Call `stop` at the first SIGINT or SIGTERM, and say so; later ones have their default effect."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        say("ending the run and writing the report (Ctrl-C again: stop without a report)")
        stop()
        for number in (SIGINT, SIGTERM):
            loop.remove_signal_handler(number)

    for number in (SIGINT, SIGTERM):
        loop.add_signal_handler(number, on_signal)

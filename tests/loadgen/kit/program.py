"""Owns the load generator's command line for a process of its own. Must not know what a test asks of it."""

from __future__ import annotations

import sys

from tests.kit.warm import warm


def program(*words: str, plots: bool = False) -> list[str]:
    """`python -m loadgen` with these words. Without `plots` it is as where matplotlib is not installed, and a warm
    start: drawing takes 1.6 s of the 2.4 s of CPU of a small run, imports half a second of the rest."""
    if plots:
        return [sys.executable, "-m", "loadgen", *words]
    return warm("loadgen", *words, preload=("loadgen.cli.run", "loadgen.cli.find"), without=("matplotlib",))

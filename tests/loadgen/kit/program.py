"""Owns the load generator's command line for a process of its own. Must not know what a test asks of it."""

from __future__ import annotations

import sys
from typing import Final

PLAIN: Final = (
    "import runpy, sys; sys.modules['matplotlib'] = None; "
    "runpy.run_module('loadgen', run_name='__main__', alter_sys=True)"
)


def program(*words: str, plots: bool = False) -> list[str]:
    """`python -m loadgen` with these words. Without `plots` it is as where matplotlib is not installed: drawing
    takes 1.6 s of the 2.4 s of CPU of a small run."""
    return [sys.executable, *(["-m", "loadgen"] if plots else ["-c", PLAIN]), *words]

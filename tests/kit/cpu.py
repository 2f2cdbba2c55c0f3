"""Owns the CPU time of one call. Must not know what is called."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def cpu_seconds(call: Callable[[], object]) -> float:
    """Of this thread, without a garbage collection: it visits all that earlier tests left behind."""
    collects = gc.isenabled()
    gc.disable()
    try:
        began = time.thread_time()
        call()
        return time.thread_time() - began
    finally:
        if collects:
            gc.enable()

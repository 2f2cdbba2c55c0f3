"""The hook that makes a function raise."""

from __future__ import annotations

import gc
import sys

import pytest

from tests.kit.injection import Tracer


def target() -> None:
    pass


def another() -> None:
    pass


class Garbage:
    """Of a cycle: a collection finalizes it."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        target()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the finalizer's
def test_a_collection_that_calls_the_target_takes_the_hook_off_and_does_not_free_it() -> None:
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # the collections to come look at what is made from here on
    try:
        raised = 0
        for _ in range(20):
            gc.disable()
            Garbage()
            gc.set_threshold(1)
            with Tracer(target.__code__) as tracer:
                gc.enable()
                another()  # on 3.11 the collection comes while the hook is about to be called for this
                gc.collect()
            raised += tracer.raised
        assert raised or sys.version_info >= (3, 12), "the collection comes in another place there"
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()

"""The hook that makes a function raise."""

from __future__ import annotations

import gc
import sys
from types import FunctionType
from typing import cast

import pytest

from proxy.flights.flight import Flight
from proxy.server.gateway import Gateway
from tests.kit.injection import Injected, Swap, Tracer, plain


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


class Base:
    def __init__(self, first: int, second: int = 2, *, third: int = 3) -> None:
        self.given = (first, second, third)


class Derived(Base):
    def __init__(self, first: int, *, third: int = 9) -> None:
        super().__init__(first, third=third)


def test_one_call_of_a_function_raises_and_the_others_are_as_before() -> None:
    function = cast(FunctionType, Derived.__init__)
    code = function.__code__
    with Swap(function, 2) as swap:
        assert Derived(1).given == (1, 2, 9)
        with pytest.raises(Injected):
            Derived(1)
        assert Derived(1, third=4).given == (1, 2, 4)
    assert swap.raised
    assert function.__code__ is code
    assert Derived(5).given == (5, 2, 9)


def test_a_function_is_plain_unless_it_pauses() -> None:
    codes = Flight.enter.__code__, Flight.started.fget.__code__, Gateway.handle.__code__  # type: ignore[attr-defined]
    assert [code in plain() for code in codes] == [True, True, False]

"""Who a request is from, as the rest of the gateway sees it."""

from __future__ import annotations

import dataclasses

import pytest

from proxy.access.caller import Caller, Rates


def test_a_caller_of_whom_nothing_is_said_may_name_every_model_and_has_no_ceiling_of_its_own() -> None:
    caller = Caller(id="203.0.113.9")
    assert caller.models is None
    assert dataclasses.astuple(caller.rates) == (None, None, None, None)
    assert caller.tenant == b""


def test_a_caller_cannot_be_changed_once_it_is_known() -> None:
    caller = Caller(id="k1", rates=Rates(rps=2.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        caller.tenant = b"another"  # type: ignore[misc]

"""A large request is refused by its head, before its body is read."""

from __future__ import annotations

from typing import Any, cast

import pytest

from proxy.access.caller import Caller, Rates
from proxy.access.ratelimit.admission import Admission
from proxy.access.ratelimit.buckets import LocalLimits
from proxy.access.ratelimit.limiter import Limiter
from proxy.errors import Code, GatewayError
from tests.proxy.access.ratelimit.test_admission_costs import call


async def test_the_second_of_one_stream_is_refused_by_its_head() -> None:
    limiter = Limiter(LocalLimits(0.0), clock=lambda: 0.0)
    admission = Admission(limiter, cast(Any, lambda request: None), assumed=1)
    caller = Caller(id="a", rates=Rates(streams=1))
    first, second = call(caller=caller), call(caller=caller)
    await admission.head(first)
    with pytest.raises(GatewayError) as refused:
        await admission.head(second)
    assert refused.value.code is Code.RATE_LIMITED
    for each in (first, second):
        assert each.hold is not None
        each.hold.close()

"""A number that is none is refused in words, whatever it is."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config import values


@pytest.mark.parametrize("raw", ["x", "", "1,5", 10**400, None, [1], "nan", True])
def test_what_is_no_number_is_refused_with_the_bounds(raw: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^must be a number from 0.5 to 2(; digits may be grouped by _, as in 1_000_000)?$"
    ):
        values.number(0.5, 2.0)(raw)

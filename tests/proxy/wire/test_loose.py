"""Loose types are read as pydantic reads them, which vLLM's request models are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from proxy.wire.loose import boolean, integer, number

READERS: list[tuple[Callable[[Any], Any], type]] = [(boolean, bool), (integer, int), (number, float)]
WORDS = [
    *("0", "1", "true", "True", "TRUE", "t", "y", "yes", "on", "off", "n", "no", "f", "false", "x"),
    *("4", "4.0", "-4", "+4", "04", "0.7", ".5", "5.", "1e-5", "-0", "1_000", "nan", "inf"),
]
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.text("0123456789+-.eE_ \t\nx", max_size=8),
    st.from_regex(r"\A[ \t]?[+-]?[0-9]{1,20}(\.[0-9]{0,3})?(e[+-]?[0-9]{1,3})?[ ]?\Z"),
    st.text(max_size=6),
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 42.0, 1e300]), TEXTS, st.lists(st.integers(), max_size=2),
)  # fmt: skip


def by_pydantic(kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


@given(value=VALUES)
@pytest.mark.parametrize(("reader", "kind"), READERS)
def test_what_is_read_here_is_read_alike_there(reader: Callable[[Any], Any], kind: Any, value: Any) -> None:
    read: Any = reader(value)
    if read is not None:
        there: Any = by_pydantic(kind, value)
        assert type(read) is kind
        assert (there, math.copysign(1, there)) == (read, math.copysign(1, read))


@pytest.mark.parametrize(
    ("reader", "values"),
    [
        (boolean, [True, False, 0, 1, 0.0, 1.0, "0", "1", "true", "False", "YES", "off", "t", "n"]),
        (integer, [4, 4.0, "4", " 4 ", "4.0", "-1", "+4", "04", True]),
        (number, [0, 0.7, "0", "0.7", " .5", "5.", "1e-5", "-0", True]),
    ],
)
def test_what_clients_write_is_read(reader: Callable[[Any], Any], values: list[Any]) -> None:
    kind = dict(READERS)[reader]
    assert [reader(value) for value in values] == [by_pydantic(kind, value) for value in values]
    assert None not in [reader(value) for value in values]


@pytest.mark.parametrize("reader", [boolean, integer, number])
@pytest.mark.parametrize("value", [None, "", "x", [], {}, [1], "null", "9" * 5000, " " * 5000 + "x", "0x1", "٤"])
def test_what_is_none_is_refused(reader: Callable[[Any], Any], value: Any) -> None:
    assert reader(value) is None


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_an_integer_beyond_a_float_is_no_number(value: int) -> None:
    assert number(value) is None

"""Token counts of answers that pass through: found however they are split, and only where an engine counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.events.raw_ingest import MOST_OBJECT, UsageTap
from proxy.wire import Usage

COUNTS = {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}
DETAILS = COUNTS | {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": None}
QUOTED = {"message": {"content": '"usage":{"prompt_tokens":9,"completion_tokens":9}, and \\"usage": {}'}}


def read(data: bytes, *cuts: int) -> UsageTap:
    tap, at = UsageTap(), 0
    for cut in (*sorted(cuts), len(data)):
        tap.feed(data[at:cut])
        at = cut
    return tap


@pytest.mark.parametrize(
    ("members", "usage"),
    [
        ({"usage": COUNTS}, Usage(7, 3, 10)),
        ({"choices": [QUOTED], "usage": DETAILS, "prompt_logprobs": [None] * 4000}, Usage(7, 3, 10)),
        ({"usage": {"input_tokens": 5, "output_tokens": 2}}, Usage(5, 2, 7)),
        ({"usage": {"prompt_tokens": 5, "total_tokens": 5}}, Usage(5, 0, 5)),
        ({"usage": COUNTS, "last": {"usage": None}}, Usage(7, 3, 10)),
        ({"usage": COUNTS, "a later one": {"usage": {"completion_tokens": 8}}}, Usage(0, 8, 8)),
        ({"choices": [QUOTED]}, None),
        ({"usage": {"type": "duration", "seconds": 3}}, None),
        ({"usage": COUNTS | {"completion_tokens": -1}}, None),
        ({"usage": COUNTS | {"completion_tokens": 2**60}}, None),
        ({"usage": COUNTS | {"prompt_tokens": True}}, None),
        ({"usage": COUNTS | {"completion_tokens": "3"}}, None),
        ({"usage": {"a": "x" * MOST_OBJECT, **COUNTS}}, Usage(7, 3, 10)),  # in one piece
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_the_last_counts_of_a_body_are_its_own(
    members: dict[str, Any], usage: Usage | None, indent: int | None
) -> None:
    data = json.dumps(members, indent=indent).encode()
    assert read(data).usage == usage


STREAM = b"".join(
    b"data: " + json.dumps({"choices": [QUOTED], "usage": usage}).encode() + b"\n\n"
    for usage in (None, None, COUNTS | {"completion_tokens": 1}, DETAILS)
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_however_it_is_split(cuts: list[int]) -> None:
    tap = read(STREAM, *cuts)
    assert (tap.usage, tap.events) == (Usage(7, 3, 10), 4)


def test_byte_by_byte_what_is_kept_is_bounded() -> None:
    tap = read(STREAM, *range(len(STREAM)))
    assert (tap.usage, tap.events) == (Usage(7, 3, 10), 4)
    tap = UsageTap()
    for _ in range(100):
        tap.feed(b'"usage":{' + b" " * 1000)
        assert len(tap._rest) <= MOST_OBJECT + 1009


def test_a_body_of_many_braces_is_read_in_a_time_that_is_linear() -> None:
    assert read(b'"usage":' + b"{" * 10**6 + b"}" * 10**6).usage is None
    assert read(b'"usage":{' * 10**5).usage is None

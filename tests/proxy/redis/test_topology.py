"""What servers say of slots and redirections, which is data: right, odd, or hostile."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.redis.cluster import _place
from proxy.redis.resp import Lost
from proxy.redis.topology import SLOTS, _owners

texts = st.binary(max_size=8) | st.none() | st.integers() | st.text(max_size=4)
replies = st.recursive(texts, lambda inner: st.lists(inner, max_size=5), max_leaves=30)
rows = st.lists(st.tuples(st.integers(), st.integers(), st.tuples(texts, st.integers())), max_size=5)


def test_each_slot_has_the_master_that_its_range_names_first() -> None:
    owners = _owners(
        [
            [0, 99, [b"a", 1, b"id", []], [b"replica", 9, b"id"]],
            [100, SLOTS - 2, [b"", 2, b"id"]],
            [SLOTS - 1, SLOTS - 1, [None, 3]],
        ],
        "asked",
    )
    assert len(owners) == SLOTS
    assert (owners[0], owners[99], owners[100]) == (("a", 1), ("a", 1), ("asked", 2))
    assert (owners[SLOTS - 2], owners[SLOTS - 1]) == (("asked", 2), ("asked", 3))
    assert _owners([], "asked") == [None] * SLOTS


@pytest.mark.parametrize(
    "row",
    [[5, 4, [b"a", 1]], [-1, 4, [b"a", 1]], [0, SLOTS, [b"a", 1]], [0, 1, [b"a", 0]], [0, 1], [0, 1, [b"a"]], 7],
)
def test_a_range_that_cannot_be_is_refused(row: Any) -> None:
    with pytest.raises(Lost, match="an invalid reply to CLUSTER SLOTS"):
        _owners([row], "asked")


@given(replies | rows)
def test_no_reply_raises_anything_else(reply: Any) -> None:
    try:
        assert len(_owners(reply, "asked")) == SLOTS
    except Lost:
        pass


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("MOVED 3999 127.0.0.1:6381", ("127.0.0.1", 6381)),
        ("ASK 3999 redis-2.redis:7000", ("redis-2.redis", 7000)),
        ("MOVED 3999 :6381", ("asked", 6381)),
        ("MOVED 3999 ::1:6381", ("::1", 6381)),
        ("MOVED 3999 [::1]:6381", ("::1", 6381)),
        ("MOVED 3999 ?:6381", None),
        ("MOVED 3999 h:0", None),
        ("MOVED 3999 h:99999", None),
        ("MOVED 3999 h:6381 more", None),
        ("MOVED 3999", None),
        ("MOVED", None),
    ],
)
def test_a_redirection_names_a_server_or_nothing(text: str, place: tuple[str, int] | None) -> None:
    assert _place(text, ("asked", 1)) == place


@given(st.text(max_size=60))
def test_any_text_is_a_redirection_or_none(text: str) -> None:
    found = _place(f"MOVED {text}", ("asked", 1))
    assert found is None or 0 < found[1] < 65536

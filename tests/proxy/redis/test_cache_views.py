"""The two views of a stored stream: with usage and without, and where they part."""

from __future__ import annotations

import pytest

from proxy.redis.cache import stream_views

A, B, C = b"a", b"bb", b"ccc"


@pytest.mark.parametrize(
    ("full", "plain", "views"),
    [
        ([A, B], [A, B], (b"abb", None, b"")),
        ([], [], (b"", None, b"")),
        ([A, B, C], [A, C], (b"abbccc", 1, b"ccc")),
        ([A, B, C], [A, B], (b"abbccc", 3, b"")),
        ([A, B], [A, B, C], (b"abb", 3, b"ccc")),
        ([A], [B], (b"a", 0, b"bb")),
        ([A], [], (b"a", 0, b"")),
        ([A, B, A], [A, C, A], (b"abba", 1, b"ccca")),
    ],
)
def test_where_the_views_part(
    full: list[bytes], plain: list[bytes], views: tuple[bytes, int | None, bytes]
) -> None:
    assert stream_views(full, plain) == views
    body, cut, tail = views
    assert (body if cut is None else body[:cut] + tail) == b"".join(plain)


def test_one_list_is_one_view() -> None:
    both = [A, B]
    assert stream_views(both, both) == (b"abb", None, b"")

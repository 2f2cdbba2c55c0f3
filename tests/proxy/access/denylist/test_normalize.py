"""The form in which texts are compared: what looks alike is alike, and pieces make the same whole."""

from __future__ import annotations

import re
import unicodedata
from types import SimpleNamespace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.denylist import normalize as text_form
from proxy.access.denylist.normalize import MAX_PENDING, StreamNormalizer, normalize, visible_length

# Letters that combine, Hangul in parts, ligatures, wide forms, case that grows, spaces, characters of no width.
ODD = st.text(
    st.sampled_from(
        "aeK ßẞİſÅ\u0301\u0327\u0345\u1100\u1161\u11a8\u314f가ﬁＡ\u00ad\u200b\ufe0f\t\n\u3000\u0958\u093c字"
        "\u3164\u2800\x00\x7f"
    )
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("BAD", "bad"),
        ("ｂａｄ", "bad"),
        ("b\u200ba\u00add", "bad"),
        ("ﬁne", "fine"),
        ("Stra\u00dfe", "STRASSE"),
        ("e\u0301", "\u00c9"),
        ("two\n\t words", "two words"),
        ("two\u00a0words", "two words"),
        ("two\u2800words", "two words"),
        *(
            (f"b{chr(code)}ad", "bad")
            for code in (
                *(
                    0x00,
                    0x08,
                    0x1B,
                    0x7F,
                    0x9F,
                    0x115F,
                    0x1160,
                    0x17B4,
                    0x180B,
                    0x180F,
                    0x3164,
                    0xFFA0,
                    0xFFF0,
                    0xFFF9,
                ),
                *(0x1BCA0, 0x1D173, 0xE0080, 0xE0FFF),
            )
        ),
    ],
)
def test_what_looks_alike_has_one_form(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)


@given(ODD | st.text(), st.data())
def test_a_text_in_pieces_has_the_form_of_the_whole(text: str, data: st.DataObject) -> None:
    former, at, out = StreamNormalizer(), 0, ""
    while at < len(text):
        size = data.draw(st.integers(1, 5))
        out += former.feed(text[at : at + size])
        at += size
        assert len(former.pending) <= MAX_PENDING
    assert out + former.end() == normalize(text)


def test_marks_without_end_are_not_waited_for() -> None:
    former = StreamNormalizer()
    former.feed("a" + "\u0301" * 10_000)
    assert len(former.pending) <= MAX_PENDING


@given(st.text())
def test_only_characters_of_some_width_count(text: str) -> None:
    assert visible_length(text) <= len(text)
    assert visible_length(text + "\u200b") == visible_length(text)


@pytest.mark.parametrize("mark", ["\u0316\u0300", "\uff9e\u0334"])
def test_marks_without_end_are_normalised_in_pieces(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measured(kind: Literal["NFKC"], text: str) -> str:
        sizes.append(len(text))
        return unicodedata.normalize(kind, text)

    monkeypatch.setattr(text_form, "unicodedata", SimpleNamespace(normalize=measured))
    assert normalize("bad" + mark * 5000 + "bad").endswith("bad")
    assert max(sizes) <= MAX_PENDING + 4
    assert len(sizes) > 100


@given(ODD | st.text())
def test_the_form_is_what_the_standard_library_makes_of_it(text: str) -> None:
    unseen = text.translate(text_form._UNSEEN)
    assert normalize(text) == re.sub(r"\s+", " ", unicodedata.normalize("NFKC", unseen).casefold())

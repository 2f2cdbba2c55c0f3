"""The form of texts at its edges: characters that grow, runs of marks, spaces between pieces, what waits."""

from __future__ import annotations

import unicodedata

import pytest

from proxy.access.denylist.normalize import MAX_PENDING, StreamNormalizer, normalize, visible_length


@pytest.mark.parametrize("char", ["\ufdfa", "\ufdfb"])
def test_the_two_characters_that_become_many_do_so(char: str) -> None:
    assert normalize(f"a{char}b") == unicodedata.normalize("NFKC", f"a{char}b").casefold()
    assert normalize(char * 3) == normalize(char) * 3


@pytest.mark.parametrize("size", [64, 65, 66, 128, 129, 130, 200])
def test_a_run_of_marks_of_any_length_is_the_same_as_pieces_of_it(size: int) -> None:
    marks = "\u0301" * size
    assert normalize("a" + marks).startswith("á")
    assert len(normalize("a" + marks)) == size
    assert normalize(marks + "ab").endswith("ab")
    assert normalize("x" * 63 + marks + "y").endswith("y")


def fed(*pieces: str) -> tuple[list[str], StreamNormalizer]:
    former = StreamNormalizer()
    return [former.feed(piece) for piece in pieces], former


def test_the_last_character_waits_for_what_may_combine_with_it() -> None:
    out, former = fed("a", "b", "e", "\u0301", "x")
    assert out == ["", "a", "b", "", "é"]
    assert (former.pending, former.peek(), former.end(), former.pending) == ("x", "x", "x", "")
    assert StreamNormalizer().feed("") == ""
    assert StreamNormalizer().end() == ""


def test_so_many_characters_wait_and_no_more() -> None:
    most = "\u0301" * (MAX_PENDING - 1)
    out, former = fed("xa" + most)
    assert (out, len(former.pending)) == (["x"], MAX_PENDING)
    out, former = fed("xa" + most + "\u0301")
    assert former.pending == ""
    assert out == [normalize("xa" + most + "\u0301")]


def test_spaces_at_the_seams_of_pieces_are_one_space() -> None:
    out, former = fed("a ", " b", "  ", " ", "c")
    assert "".join(out) + former.end() == "a b c"
    out, former = fed("  ", "  a")
    assert "".join(out) + former.end() == " a"
    _, former = fed("a b ", " ")
    assert former.peek() == ""  # of the space that waits nothing is left: one is out
    _, former = fed("ab ", "c")
    assert former.peek() == "c"
    _, former = fed("a", " ")
    assert former.peek() == " "
    _, former = fed("a  b", "\u200b")
    assert former.peek() == "b"


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        ("\u02ff", False),
        ("\u0300", True),
        ("\u0903", True),  # a mark of class 0
        ("\u1100", False),
        ("\u1161", True),
        ("\u11a8", True),
        ("\u11ff", True),
        ("\u1200", False),
        ("가", False),
        ("\U00016d40", True),
        ("\U00016d7f", True),
        ("\U00016d80", False),
        ("\U00016d3f", False),
        ("字", False),
        ("\uff9e", True),  # becomes a mark
        ("é", False),
    ],
)
def test_what_may_combine_with_what_is_before_it_is_waited_for(first: str, waits: bool) -> None:
    out, former = fed("xa" + first)
    assert (out[0] == "x") is waits
    assert former.pending == ("a" + first if waits else first)


def test_a_character_of_no_width_counts_for_nothing() -> None:
    assert visible_length("a\u200bb\x00") == 2
    assert fed("xa\u1160")[0] == ["x"]  # nothing came after `a`
    assert visible_length("\u2800") == 1
    assert normalize("\u200b") == ""
    assert normalize("a\x7fb\x1fc") == "ab c"

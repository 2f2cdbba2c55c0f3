"""A text in pieces: one verdict for any pieces, nothing of a match let out, nothing harmless held for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.denylist.normalize import normalize, visible_length
from proxy.access.denylist.rules import DenyList, read_deny_list
from proxy.access.denylist.scanner import Scanner

WINDOW = 12
LITERALS = ["bad", "aab", "two words", "\u00e9t\u00e9", "가나", "ab ab"]
PATTERNS = ["\\bcat\\b", "^start", "end$", "b[ae]{1,4}d", "x\\d{3}y", "(?m)^line"]
PIECES = st.lists(
    st.sampled_from(
        [*"abdcte x", "ba", "d", "B", "two ", " words", "e\u0301t", "\u00e9", "\u0301", "\u200b", "\u1100",
         "\u1161", "\u1161", "나", "cat", "start", "end", "x12", "3y", "\n", "line", "aa", "bae", "ed", "字"]
    ),
    max_size=30,
)  # fmt: skip


def scanned(deny: DenyList, pieces: list[str], window: int = WINDOW) -> tuple[Scanner, str]:
    """The scanner at the end, and what it had declared safe before."""
    scanner, text, out = Scanner(deny, window), "", ""
    for piece in pieces:
        scanner.feed(piece)
        text += piece
        if scanner.hit is not None:
            return scanner, out
        assert visible_length(out) <= scanner.safe <= visible_length(text), "what was safe stays so"
        out = text
        while visible_length(out) > scanner.safe:
            out = out[:-1]
    scanner.end()
    return scanner, out


def cut(text: str, data: st.DataObject) -> list[str]:
    pieces, at = [], 0
    while at < len(text):
        size = data.draw(st.integers(1, 6))
        pieces.append(text[at : at + size])
        at += size
    return pieces


LISTS = st.lists(st.sampled_from(LITERALS), unique=True, max_size=4)
RULES = st.lists(st.sampled_from(PATTERNS), unique=True, max_size=3)


@given(LISTS, RULES, PIECES, st.data())
def test_any_pieces_of_a_text_get_the_verdict_of_the_whole(
    literals: list[str], patterns: list[str], pieces: list[str], data: st.DataObject
) -> None:
    if not literals and not patterns:
        literals = ["bad"]
    deny = read_deny_list("\n".join([*literals, *(f"re: {p}" for p in patterns)]), "d")
    text = "".join(pieces)
    verdict = deny.find(text) is not None
    assert (scanned(deny, pieces)[0].hit is not None) == verdict
    assert (scanned(deny, cut(text, data))[0].hit is not None) == verdict
    assert (scanned(deny, [text])[0].hit is not None) == verdict


@given(LISTS, RULES, PIECES)
def test_what_was_let_out_holds_nothing_of_the_first_match(
    literals: list[str], patterns: list[str], pieces: list[str]
) -> None:
    """Every later text is safe too: what is out, with any ending, breaks no rule by its own characters."""
    if not literals and not patterns:
        literals = ["bad"]
    deny = read_deny_list("\n".join([*literals, *(f"re: {p}" for p in patterns)]), "d")
    scanner, out = scanned(deny, pieces)
    if scanner.hit is None:
        return
    formed = normalize(out)
    for literal in literals:
        whole = normalize("".join(pieces))
        at = whole.find(normalize(literal))
        if at >= 0 and whole.startswith(formed):
            assert len(formed) <= at, (out, literal)


def test_only_what_may_begin_a_text_waits() -> None:
    deny = read_deny_list("forbidden", "d")
    scanner = Scanner(deny, WINDOW)
    for text, safe in [("hello", 5), (" f", 6), ("or", 6), (" you", 13), (" forbidde", 13), ("r", 23)]:
        scanner.feed(text)
        assert scanner.safe == safe, text
    scanner.feed("forbidden")
    assert (scanner.hit, scanner.safe) == (None, 23)  # a mark may follow: then it is another text
    scanner.feed("!")
    assert scanner.hit == 1


def test_of_a_pattern_so_much_waits_as_its_window() -> None:
    deny = read_deny_list("re: a+b", "d")
    scanner = Scanner(deny, 10)
    for _ in range(10):
        scanner.feed("0123456789")
    assert scanner.safe == 79, "the last piece that ends before the window"
    scanner.end()
    assert scanner.safe == 100


@pytest.mark.parametrize("text", ["badly", "a cat", "cats and cat"])
def test_the_end_of_a_word_is_known_only_by_what_follows(text: str) -> None:
    deny = read_deny_list("re: \\bcat\\b", "d")
    scanner: Any = Scanner(deny, WINDOW)
    for char in text:
        scanner.feed(char)
        assert scanner.hit is None
    scanner.end()
    assert (scanner.hit is not None) == text.endswith("cat")


def test_a_character_that_may_combine_takes_back_nothing_that_was_safe() -> None:
    scanner = Scanner(read_deny_list("re-entry", "d"), WINDOW)
    found = []
    for char in "more\ufffd\u1161.":
        scanner.feed(char)
        found.append(scanner.safe)
    assert found == sorted(found)


def test_after_a_hit_nothing_more_is_read_and_the_first_rule_stays() -> None:
    scanner, hits = Scanner(read_deny_list("bad\nre: d", "d"), WINDOW), []
    for piece in ("a bad", "."):
        scanner.feed(piece)
        hits.append(scanner.hit)
    assert (hits, scanner.read) == ([None, 1], 6)
    before = scanner.safe
    scanner.feed("more d of it")
    scanner.end()
    assert (scanner.hit, scanner.read, scanner.safe) == (1, 6, before)


def test_nothing_fed_is_nothing_read() -> None:
    scanner = Scanner(read_deny_list("bad\nre: ^a", "d"), WINDOW)
    scanner.feed("")
    assert (scanner.hit, scanner.read, scanner.safe) == (None, 0, 0)
    scanner.end()
    assert (scanner.hit, scanner.safe) == (None, 0)


@pytest.mark.parametrize(
    ("rule", "pieces", "hit"),
    [
        ("^a", ["ab"], 1),
        ("^a", ["b", "a", "b"], None),
        ("^a", ["x" * 40, "ab"], None),  # the buffer was cut: its first character is no beginning
        ("b$", ["a", "b"], 1),
        ("b$", ["ab", "c"], None),
        ("a$", ["a"], 1),
        ("\\Aa\\z", ["a"], 1),
    ],
)
def test_the_beginning_and_the_end_of_a_text_are_where_they_are(
    rule: str, pieces: list[str], hit: int | None
) -> None:
    scanner = Scanner(read_deny_list(f"re: {rule}", "d"), WINDOW)
    for piece in pieces:
        scanner.feed(piece)
    scanner.end()
    assert scanner.hit == hit


@pytest.mark.parametrize(("size", "hit"), [(10, 1), (11, 1), (12, None)])
def test_so_much_of_a_text_is_kept_for_a_match(size: int, hit: int | None) -> None:
    """The window, and a character on either side of it, by which an end of a word is known."""
    scanner = Scanner(read_deny_list("re: s[^e]*e", "d"), 10)
    for char in "x" * 20 + "s" + "-" * (size - 2) + "e.":
        scanner.feed(char)
    scanner.end()
    assert scanner.hit == hit


def test_what_a_text_of_the_list_and_a_pattern_may_begin_waits_for_the_longer() -> None:
    scanner = Scanner(read_deny_list("abcdefghijklmnopqrstuvwxyz\nre: 0", "d"), 3)
    found = []
    for piece in ("12 abcdefghijkl.", "12 abcdefghijkl", "."):
        scanner.feed(piece)
        found.append(scanner.safe)
    assert found == [0, 15, 15]
    scanner.end()
    assert scanner.safe == 32

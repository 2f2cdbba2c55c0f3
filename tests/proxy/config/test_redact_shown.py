"""Values that may hold a secret, member by member: what is shown of each, what is hidden, what is looked for."""

from __future__ import annotations

import pytest

from proxy.config.redact import (
    HIDDEN,
    LEAST,
    Known,
    mask_url,
    secrets_in,
    shown_path,
    shown_url,
    shown_urls,
    shown_word,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("http://h/a?db=1&DB=2&x=3&y&token=4&TOKEN=5", "http://h/a?db=1&DB=2&***&***&token=***&TOKEN=***"),
        ("http://h/a?", "http://h/a?***"),
        ("http://h?db=", "http://h?db="),
        ("redis://h/123456789", "redis://h/123456789"),
        ("redis://h/1234567890", "redis://h/***"),
        ("REDISS://h/x", "REDISS://h/***"),
        ("http://h/x", "http://h/x"),
        ("http://@h", "http://***@h"),
        ("h:99999/", "h:99999/"),
        ("h:999999", HIDDEN),
        ("--flag", "--flag"),
    ],
)
def test_a_url_is_shown_member_by_member(text: str, shown: str) -> None:
    assert shown_url(text) == shown


def test_several_urls_are_shown_one_by_one() -> None:
    assert shown_urls("http://a, http://u:p@b  http://c") == "http://a, http://***@b, http://c"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://u:p@h/0", "redis://***@h/0"),
        ("cannot reach redis://u:p@h/0", "cannot reach redis://***@h/0"),
        ("cannot reach rediss+cluster://u:p@a,b", "cannot reach rediss+cluster://***@a,b"),
        ("u:p@h", "***@h"),
        ("a@b@h", "***@h"),
        ("http://h?db=1&token=x&new=y", "http://h?db=1&token=***&***"),
        ("h?token=x&new=y", "h?token=***&new=y"),
        ("h?TOKEN=x", "h?TOKEN=***"),
        ("plain", "plain"),
        ("a\nb@h", "***@h"),
    ],
)
def test_a_text_that_may_hold_a_url_is_masked(text: str, masked: str) -> None:
    assert mask_url(text) == masked


def test_what_is_hidden_is_told_by_its_length() -> None:
    assert shown_path("A" * 70) == "*** (70 characters, not shown: not a file path)"
    assert shown_word("AB1") == "*** (3 characters)"


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("redis://default:pw@h", ["pw"]),
        ("redis://me:p%40w+x@h", ["p%40w+x", "p@w+x", "p@w x", "me"]),
        ("redis://me@h", ["me"]),
        ("redis://h?db=1&password=a%20b&DB=3", ["a%20b", "a b"]),
        ("rediss://:x@h?token=y", ["x", "y"]),
        ("nonsense", []),
    ],
)
def test_the_secrets_of_a_url_as_written_and_decoded(url: str, secrets: list[str]) -> None:
    assert secrets_in(url) == secrets


def test_a_secret_of_a_few_characters_is_in_every_other_word() -> None:
    known = Known()
    known.hide(["a" * (LEAST - 1), "b" * LEAST])
    assert known.out_of("aaa bbbb") == f"aaa {HIDDEN}"
    known.hide(["bbbbcc"])
    assert known.out_of("bbbbcc bbbb") == f"{HIDDEN} {HIDDEN}"
    assert repr(known) == "<Known 2>"

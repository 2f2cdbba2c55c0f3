"""The deny list as data: its automaton, what its search costs, and its file at the bounds."""

from __future__ import annotations

import hashlib

import pytest

from proxy.access.denylist.rules import MAX_LITERAL, MAX_RULES, AhoCorasick, DenyList, read_deny_list
from proxy.errors import SettingsError


def test_an_automaton_goes_on_from_the_longest_end_that_begins_a_text() -> None:
    trie = AhoCorasick([("abcd", 1), ("bc", 2), ("c", 3), ("abcd", 4)])
    assert trie.depth[0] == trie.hit[0] == 0
    seen, state = [], 0
    for char in "xabcdbcab":
        state = trie.step(state, char)
        seen.append((trie.depth[state], trie.hit[state]))
    assert seen == [(0, 0), (1, 0), (2, 0), (3, 2), (4, 1), (1, 0), (2, 2), (1, 0), (2, 0)]
    assert trie.walk(0, "xab")[1] == 0
    state, line = trie.walk(0, "xab")
    assert trie.walk(state, "xxx") == (0, 0)
    assert (line, trie.walk(state, "c")[1]) == (0, 2)
    assert trie.walk(0, "zc")[1] == 3
    assert trie.walk(trie.walk(0, "ab")[0], "dabc")[1] == 2


def denies(texts: int, patterns: int = 0) -> DenyList:
    return read_deny_list(
        "\n".join([*(f"text{n}." for n in range(texts)), *(f"re: p{n}x" for n in range(patterns))]), "d"
    )


@pytest.mark.parametrize(
    ("texts", "patterns", "weight"), [(1, 0, 17.5), (64, 0, 238), (65, 0, 134), (1, 2, 137.5), (0, 1, 74)]
)
def test_what_a_search_takes_at_most(texts: int, patterns: int, weight: float) -> None:
    deny = denies(texts, patterns)
    assert (deny.weight, len(deny)) == (weight, texts + patterns)


@pytest.mark.parametrize("count", [1, 64, 65])
def test_few_texts_and_many_are_found_alike(count: int) -> None:
    deny = denies(count)
    assert deny.find(f"x TEXT{count - 1}. y") == count
    assert deny.find("text") is None
    assert deny.find_literal("text0.") == 1


@pytest.mark.parametrize(
    ("text", "plain"), [("a\nb", True), ("a\né", False), ("é\na", False), ("a\nre: b", False), ("ﬁ", True)]
)
def test_a_list_is_plain_where_all_its_texts_are_ascii(text: str, plain: bool) -> None:
    assert read_deny_list(text, "d").plain is plain


def test_a_text_of_the_list_is_told_before_a_pattern_and_an_earlier_pattern_before_a_later() -> None:
    deny = read_deny_list("re: b+\nab\nre: a", "d")
    assert [deny.find(text) for text in ("ab", "xb", "xa", "ba", "x")] == [2, 1, 3, 1, None]


def test_a_prompt_of_one_part_a_message_is_looked_at_once() -> None:
    looked: list[str] = []

    class Counting(DenyList):
        def find(self, text: str) -> int | None:
            looked.append(text)
            return super().find(text)

    deny = Counting([("zz", 1)], (), "")
    assert deny.find_in_prompt([["a"], ["b"]]) is None
    assert looked == ["a\nb"]
    assert deny.find_in_prompt([["a", "b"], ["c"]]) is None
    assert looked[1:] == ["ab\nc", "a\nb\nc"]
    assert deny.find_in_prompt([["z", "z"]]) == 1
    assert len(looked) == 4


def test_a_list_is_known_by_what_its_file_says() -> None:
    assert read_deny_list("a\n", "d").digest == hashlib.sha256(b"a\n").digest()
    assert DenyList((), (), "\ud800").digest == hashlib.sha256(b"?").digest()


def test_the_lines_of_a_file_are_numbered_with_those_that_say_nothing() -> None:
    deny = read_deny_list("# one\n\n a \n#b\ntext:# c\nre:  d+ \n", "d")
    assert [deny.find(text) for text in ("a", "b", "# c", "dd")] == [3, None, 5, 6]
    assert repr(deny) == "<DenyList of 2 texts, 1 patterns>"


def test_a_file_may_hold_so_many_rules_and_its_first_problems_are_told() -> None:
    rules = "\n".join(f"r{n}" for n in range(MAX_RULES))
    assert len(read_deny_list(rules, "d")) == MAX_RULES
    with pytest.raises(SettingsError, match=f"d: holds more than {MAX_RULES} rules"):
        read_deny_list(rules + "\nre: one", "d")
    with pytest.raises(SettingsError) as e:
        read_deny_list("\n".join(["text: "] * 30), "d")
    assert [line.split(":")[1] for line in str(e.value).split("\n")] == [str(n) for n in range(1, 21)]


def test_a_text_is_measured_in_its_form() -> None:
    assert len(read_deny_list("\u200b" * 5 + "x" * MAX_LITERAL, "d")) == 1
    with pytest.raises(SettingsError, match=f"at most {MAX_LITERAL}"):
        read_deny_list("ß" * (MAX_LITERAL // 2 + 1), "d")


def test_a_pattern_ignores_case_and_is_told_why_it_is_none() -> None:
    assert read_deny_list("re: AbC", "d").find("xaBcx") == 1
    with pytest.raises(SettingsError) as e:
        read_deny_list("re: [z-a]", "d")
    assert str(e.value) == "d:1: not a pattern: invalid character class range: z-a"

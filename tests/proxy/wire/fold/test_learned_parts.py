"""Shapes that were learned, by an engine of few words: each member of its answers moved, doubled or left out."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.wire.fold.folding import Folded
from proxy.wire.fold.known import Odd, Unfoldable
from proxy.wire.fold.learned import MOST_BYTES, MOST_MEMBERS, Unproven, body, learn, look, same
from proxy.wire.fold.shape import Template

Json = dict[str, Any]
USAGE: Json = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
HEAD: Json = {"id": "gen-1", "object": "chunk", "created": 1, "model": "m"}


def chunk(delta: Json | str, finish: str | None = None, **more: Any) -> Json:
    """A chat's with a delta, a completion's with a text."""
    said: Json = {"text": delta} if isinstance(delta, str) else {"delta": delta}
    return {**HEAD, "choices": [{"index": 0, **said, "finish_reason": finish}], **more}


def answer(message: Json | str, **more: Any) -> Json:
    said: Json = {"text": message} if isinstance(message, str) else {"message": message}
    choice = {"index": 0, **said, "finish_reason": "stop"}
    head = {**HEAD, "id": "gen-2", "object": "whole", "created": 2}
    return {**head, "choices": [choice], "usage": USAGE, **more}


ROLE = {"role": "assistant"}
CHAT = [
    chunk({**ROLE, "content": ""}),
    chunk({"content": "ab"}),
    chunk({}, "stop"),
    {**HEAD, "choices": [], "usage": USAGE},
]
WHOLE = answer({**ROLE, "content": "ab"})
TEXT = [chunk("a"), chunk("b", "stop"), {**HEAD, "choices": [], "usage": USAGE}]


def data(*chunks: Json) -> list[bytes]:
    return [json.dumps(each).encode() for each in chunks]


def learned(chunks: list[Json], whole: Json, endpoint: Folded = "chat", second: Json | None = None) -> Template:
    other = json.dumps(second).encode() if second is not None else None
    return learn(data(*chunks), json.dumps(whole).encode(), endpoint, other)


def folded(chunks: list[Json], template: Template, endpoint: Folded = "chat") -> Json:
    found: Json = json.loads(msgspec.json.encode(body(data(*chunks), endpoint, template)))
    return found


PLAIN = learned(CHAT, WHOLE)


def with_usage(usage: Any, chunks: list[Json] = CHAT) -> list[Json]:
    return [*chunks[:-1], {**HEAD, "choices": [], "usage": usage}]


def test_a_chat_and_a_completion_fold_to_the_members_of_their_bodies_in_order() -> None:
    assert json.dumps(folded(CHAT, PLAIN)) == json.dumps({**WHOLE, "id": "gen-1", "created": 1})
    text = learned(TEXT, answer("ab"), "completions")
    assert folded(TEXT, text, "completions") == {**answer("ab"), "id": "gen-1", "created": 1}
    assert folded([chunk("x"), *TEXT[1:]], text, "completions")["choices"][0]["text"] == "xb"
    assert PLAIN.empty is text.empty is None
    assert PLAIN.reasoning is None


def test_the_chunk_of_usage_is_known_as_the_last_that_has_counts() -> None:
    early = [CHAT[0], {**CHAT[1], "usage": {"prompt_tokens": 1}}, {**CHAT[2], "usage": USAGE}]
    assert folded(early, PLAIN)["usage"] == USAGE
    for last in ({}, {"usage": None}):
        with pytest.raises(Unfoldable, match="no usage at the stream's end"):
            folded([*early, {**HEAD, "choices": [], **last}], PLAIN)


def odd(at: int, **choice: Any) -> list[Json]:
    """CHAT with another choice in one chunk."""
    changed: list[Json] = json.loads(json.dumps(CHAT))
    changed[at]["choices"][0] |= choice
    return changed


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([CHAT[0], {**CHAT[1], "id": "gen-3"}, *CHAT[2:]], "chunks of different answers"),
        ([CHAT[0], {**CHAT[1], "created": 2}, *CHAT[2:]], "chunks of different answers"),
        ([CHAT[0], {**CHAT[1], "model": "n"}, *CHAT[2:]], "chunks of different answers"),
        ([{**CHAT[0], "object": None}, *CHAT[1:]], "a chunk of another kind"),
        ([*CHAT[:3], CHAT[1], CHAT[3]], "a choice that goes on after its end"),
        (odd(1, new=1), "a choice whose 'new'"),
        (odd(1, delta={"content": "a", "new": 1}), "a delta whose 'new'"),
        ([{**CHAT[0], "n" * 70: 1}, *CHAT[1:]], f"a chunk whose '{'n' * 64}' is"),
        (odd(1, logprobs={}), "logprobs, of which none"),
        (odd(1, delta={"tool_calls": [{}]}), "a tool call, of which none"),
        (odd(1, delta={"role": "user"}), "two roles"),
        (odd(1, delta={"reasoning": "hm"}), "reasoning, of which none"),
        (odd(1, delta={"reasoning_content": "hm"}), "reasoning, of which none"),
        (odd(2, finish_reason="x" * 70), f"finish_reason {'x' * 64}$"),
        (odd(1, stop_reason="x"), "a stop_reason before the end"),
        (odd(2, stop_reason="x"), "a stop_reason that bodies do not have"),
        (odd(1, delta={}), "no content: whether that is empty or null was not seen"),
        (odd(1, index=1), r"choices \[0, 1\], of which 1 have ended"),
        ([{k: v for k, v in CHAT[0].items() if k != "id"}, *CHAT[1:]], "a chunk without 'id'"),
        ([], "no usage"),
        (CHAT[-1:], r"choices \[\], of which 0"),
        (CHAT[:2] + CHAT[3:], r"choices \[0\], of which 0"),
        (
            [*({**HEAD, "choices": [CHAT[2]["choices"][0] | {"index": n}]} for n in range(9)), CHAT[3]],
            r"choices \[0, 1, 2, 3, 4, 5, 6, 7\], of which 9",
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_a_stream_that_is_not_as_the_first_one_was_is_refused_in_words(chunks: list[Json], words: str) -> None:
    with pytest.raises(Unfoldable, match=words):
        folded(chunks, PLAIN)


def test_what_is_null_or_repeats_itself_is_as_the_first_one_was() -> None:
    null = {"logprobs": None, "stop_reason": None}
    chunks = odd(1, delta={**ROLE, "content": "ab", "tool_calls": [], "reasoning": None}, **null)
    chunks[2]["choices"][0]["delta"] = {"role": None, "content": None, "tool_calls": None, "reasoning": ""}
    chunks[0]["choices"][0].pop("index")
    assert folded(chunks, PLAIN) == folded(CHAT, PLAIN)
    for reason in ("stop", "length"):
        assert folded(odd(2, finish_reason=reason), PLAIN)["choices"][0]["finish_reason"] == reason


def test_a_chunk_of_a_stream_that_goes_on_is_looked_at_alone() -> None:
    for each in data(*CHAT):
        look(each, "chat", PLAIN)
    with pytest.raises(Odd):
        look(data(*odd(2, finish_reason="abort"))[2], "chat", PLAIN)


@pytest.mark.parametrize(("empty", "text"), [("", '""'), (None, "null")])
def test_an_answer_without_text_is_as_bodies_were_seen_to_have_it(empty: str | None, text: str) -> None:
    silent = [CHAT[0], *CHAT[2:]]
    template = learned(silent, answer({**ROLE, "content": empty}))
    assert template.empty == text
    assert folded(silent, template)["choices"][0]["message"]["content"] == empty
    assert folded(CHAT, template)["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_put_together_where_an_answer_with_some_was_seen(name: str) -> None:
    thought = [CHAT[0], chunk({name: "h"}), chunk({name: "m"}), *CHAT[1:]]
    template = learned(thought, answer({**ROLE, name: "hm", "content": "ab"}))
    assert template.reasoning == name
    assert list(folded(thought, template)["choices"][0]["message"]) == ["role", name, "content"]
    assert folded([CHAT[0], chunk({name: "so"}), *CHAT[1:]], template)["choices"][0]["message"][name] == "so"
    with pytest.raises(Odd, match="no reasoning where there was some"):
        folded(CHAT, template)
    other = "reasoning" if name != "reasoning" else "reasoning_content"
    with pytest.raises(Odd, match="reasoning, of which none was seen"):
        folded([CHAT[0], chunk({other: "so"}), *CHAT[1:]], template)


@pytest.mark.parametrize("value", [None, ""])
def test_reasoning_that_is_empty_in_a_body_is_a_constant(value: str | None) -> None:
    chunks = [CHAT[0], chunk({"content": "ab", "reasoning": value}), *CHAT[2:]]
    whole = answer({**ROLE, "content": "ab", "reasoning": value})
    template = learned(chunks, whole, second=whole)
    assert template.reasoning is None
    assert folded(chunks, template)["choices"][0]["message"]["reasoning"] == value


def test_a_stop_reason_is_carried_where_bodies_have_one() -> None:
    whole = answer({**ROLE, "content": "ab"})
    whole["choices"][0]["stop_reason"] = None
    template = learned(CHAT, whole)
    assert folded(CHAT, template)["choices"][0]["stop_reason"] is None
    assert folded(odd(2, stop_reason=7), template)["choices"][0]["stop_reason"] == 7


# Usage


def detailed(inner: Any, **more: Any) -> Json:
    return {**USAGE, "details": inner, **more}


def test_details_of_counts_are_carried_as_bodies_have_them() -> None:
    whole = answer({**ROLE, "content": "ab"}, usage=detailed({"cached": 1, "audio": None}))
    template = learned(with_usage(detailed({"cached": 1})), whole)
    assert template.details == (("details", (("cached", None), ("audio", "null"))),)
    assert folded(with_usage(detailed({"cached": 4, "new": None})), template)["usage"] == detailed(
        {"cached": 4, "audio": None}
    )


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        (USAGE, "usage without details"),
        (detailed(None), "usage without details"),
        (detailed({"cached": 1, "new": 2}), "a count that bodies do not have"),
        (detailed({"cached": 1}, new=1), "a count that bodies do not have"),
        (detailed({}), "a count that the stream does not have"),
        (detailed({"cached": 1}, prompt_tokens={"a": 1}), "details of a count, of which none were seen"),
    ],
)
def test_counts_that_bodies_have_otherwise_are_refused(usage: Json, words: str) -> None:
    first = detailed({"cached": 1})
    template = learned(with_usage(first), answer({**ROLE, "content": "ab"}, usage=first))
    assert folded(with_usage(first | {"more": None}), template)["usage"] == first
    with pytest.raises(Unfoldable, match=words):
        folded(with_usage(usage), template)


def test_a_count_that_is_null_in_bodies_is_null_again_and_one_that_streams_lack_is_refused() -> None:
    template = learned(CHAT, answer({**ROLE, "content": "ab"}, usage={**USAGE, "cost": None}))
    assert folded(CHAT, template)["usage"] == {**USAGE, "cost": None}
    with pytest.raises(Unfoldable, match="a count that the stream does not have"):
        folded(with_usage({"prompt_tokens": 3}), template)


# Learning


def test_a_constant_may_have_so_many_bytes_and_an_object_so_many_members() -> None:
    longest = "x" * (MOST_BYTES - 2)
    whole = answer({**ROLE, "content": "ab"})
    assert learned([{**each, "new": longest} for each in CHAT], whole).chunk == (("new", f'"{longest}"'),)
    with pytest.raises(Unfoldable, match="'new' that is no constant"):
        learned([{**each, "new": longest + "x"} for each in CHAT], whole)
    for count in (MOST_MEMBERS, MOST_MEMBERS + 1):
        chunks = [{**each, **{f"n{n}": 0 for n in range(count)}} for each in CHAT]
        if count == MOST_MEMBERS:
            assert len(learned(chunks, whole).chunk) == count
        else:
            with pytest.raises(Unfoldable, match="65 members that are not known"):
                learned(chunks, whole)


def test_a_body_s_own_constant_may_have_so_many_bytes_and_a_body_so_many_members() -> None:
    longest = {**WHOLE, "new": "x" * (MOST_BYTES - 2)}
    assert folded(CHAT, learned(CHAT, longest, second=longest))["new"] == longest["new"]
    longer = {**WHOLE, "new": "x" * (MOST_BYTES - 1)}
    with pytest.raises(Unfoldable, match="that only bodies have"):
        learned(CHAT, longer, second=longer)
    for more in (0, 1):
        full = {**WHOLE, **{f"n{n}": None for n in range(MOST_MEMBERS - len(WHOLE) + more)}}
        if more:
            with pytest.raises(Unfoldable, match="a body with 65 members in one object"):
                learned(CHAT, full)
        else:
            assert folded(CHAT, learned(CHAT, full)) == {**full, "id": "gen-1", "created": 1}


@pytest.mark.parametrize("value", ["x", True, False, [], {}])
def test_a_constant_of_bodies_alone_is_believed_where_a_second_one_has_it(value: Any) -> None:
    whole = {**WHOLE, "new": value}
    with pytest.raises(Unproven, match="'new' that only bodies have"):
        learned(CHAT, whole)
    assert folded(CHAT, learned(CHAT, whole, second=whole))["new"] == value
    for second in (WHOLE, {**WHOLE, "new": "other"}):
        with pytest.raises(Unfoldable, match="'new' of bodies that is no constant"):
            learned(CHAT, whole, second=second)


@pytest.mark.parametrize("value", [1, -1, 0.5, [1], {"a": 1}])
def test_a_value_that_may_be_made_anew_for_each_body_is_never_believed(value: Any) -> None:
    whole = {**WHOLE, "n" * 70: value}
    with pytest.raises(Unfoldable, match=f"'{'n' * 64}' that only bodies have") as refused:
        learned(CHAT, whole, second=whole)
    assert not isinstance(refused.value, Unproven)


def test_the_name_of_a_constant_of_bodies_alone_is_told_by_its_beginning() -> None:
    name = "n" * 70
    whole = {**WHOLE, name: "x"}
    with pytest.raises(Unproven, match=f"'{'n' * 64}' that only bodies have"):
        learned(CHAT, whole)
    with pytest.raises(Unfoldable, match=f"'{'n' * 64}' of bodies that is no constant"):
        learned(CHAT, whole, second=WHOLE)


def test_constants_of_a_choice_and_a_message_are_believed_by_the_second_body_s_own() -> None:
    whole = answer({**ROLE, "content": "ab", "refusal": "no"})
    whole["choices"][0]["kind"] = "x"
    template = learned(CHAT, whole, second=whole)
    assert folded(CHAT, template)["choices"] == whole["choices"]
    text = answer("ab")
    text["choices"][0]["kind"] = "x"
    assert folded(TEXT, learned(TEXT, text, "completions", text), "completions")["choices"] == text["choices"]
    with pytest.raises(Unfoldable, match="no constant"):
        learned(CHAT, whole, second=WHOLE)


@pytest.mark.parametrize(("of_body", "good"), [("x", True), (None, False), ("y", False)])
def test_a_constant_of_chunks_is_the_body_s_own_where_both_have_it(of_body: str | None, good: bool) -> None:
    chunks = [{**each, "n" * 70: "x"} for each in CHAT]
    whole = {**WHOLE, "n" * 70: of_body}
    if good:
        assert folded(chunks, learned(chunks, whole))["n" * 70] == "x"
        return
    with pytest.raises(Unfoldable, match=f"'{'n' * 64}' that bodies have otherwise"):
        learned(chunks, whole)


def test_what_is_null_in_chunks_may_be_otherwise_in_bodies() -> None:
    chunks, whole = [{**each, "new": None} for each in CHAT], {**WHOLE, "new": "x"}
    assert folded(chunks, learned(chunks, whole, second=whole))["new"] == "x"


def test_a_member_that_changes_from_chunk_to_chunk_is_told_by_the_beginning_of_its_name() -> None:
    with pytest.raises(Unfoldable, match=f"'{'n' * 64}' that is no constant"):
        learned([{**each, "n" * 70: at} for at, each in enumerate(CHAT)], WHOLE)


@pytest.mark.parametrize(
    "whole",
    [
        {**WHOLE, "id": "body-2"},
        {**WHOLE, "choices": [*WHOLE["choices"], *WHOLE["choices"]]},
        {**WHOLE, "choices": []},
        {**WHOLE, "choices": 5},
        {**WHOLE, "model": "n"},
        {**WHOLE, "usage": {**USAGE, "total_tokens": 6}},
        {name: value for name, value in WHOLE.items() if name != "choices"},
        {},
    ],
)
def test_a_body_of_another_answer_teaches_nothing(whole: Json) -> None:
    with pytest.raises(Unfoldable):
        learned(CHAT, whole)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"[" * 100_000, "(nested too deeply|Expected `object`, got `array`)"),
        (b'{"a":"\xff"}', "(no member 'choices'|JSON is malformed)"),
        (b"{}", "no member 'choices'"),
        (b'{"choices":[]}', "(a part is missing or of another type|no member 'id')"),
    ],
)
def test_what_is_no_answer_teaches_nothing_and_is_told_in_words(text: bytes, words: str) -> None:
    for chunks, whole in ((data(*CHAT), text), ([text, *data(*CHAT)], json.dumps(WHOLE).encode())):
        with pytest.raises(Unfoldable, match=f"answers of unknown shape: {words}"):
            learn(chunks, whole, "chat")
    with pytest.raises(Unfoldable, match="a body of unknown shape"):
        same(WHOLE, text)


def test_bodies_are_the_same_but_for_id_time_and_the_numbers_of_details() -> None:
    def equal(**more: Any) -> None:
        same(
            {**WHOLE, "usage": detailed({"cached": 1})},
            json.dumps({**WHOLE, "usage": detailed({"cached": 2}), **more}).encode(),
        )

    equal()
    equal(id="x", created=9)
    for differs in (
        {"model": "n"},
        {"usage": detailed({"other": 1})},
        {"usage": detailed({"cached": 1}, total_tokens=6)},
    ):
        with pytest.raises(Unfoldable, match="not the engine's own body"):
            equal(**differs)

"""The deny list: its file, its rules, and prompts that try to get around them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.denylist.normalize import normalize
from proxy.access.denylist.rules import AhoCorasick, DenyList, read_deny_list
from proxy.errors import SettingsError
from tests.kit.client import Answer, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, gateway, lines

CHAT = "/v1/chat/completions"
LIST = "# what may not be said\n\nforbidden\nTwo Words\nre: s[3e]cr[3e]t\\s+plan\ntext:re: x\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nothing of it", None),
        ("it is FORBIDDEN here", 3),
        ("ＦＯＲbidden", 3),
        ("for\u200bbid\u00adden", 3),
        ("two\n\n words", 4),
        ("twowords", None),
        ("the S3cret   plan", 5),
        ("secretplan", None),
        ("re: x", 6),
    ],
)
def test_a_rule_is_found_by_its_line(text: str, line: int | None) -> None:
    assert read_deny_list(LIST, "deny.txt").find(text) == line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "d: holds no rule"),
        ("# only this\n", "d: holds no rule"),
        ("ok\nre: (a", "d:2: not a pattern: missing )"),
        ("re: (?=a)b", "d:1: not a pattern"),
        ("re: a*", "d:1: a pattern that matches an empty text"),
        ("re:", "d:1: a pattern that matches an empty text"),
        ("\u200b\u00ad", "d:1: a text of no characters"),
        ("text: ", "d:1: a text of no characters"),
        ("x" * 1001, "d:1: a text must have at most 1000"),
    ],
)
def test_a_wrong_line_is_named(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as e:
        read_deny_list(text, "d")
    assert says in str(e.value)


def test_a_text_of_the_greatest_length_is_taken() -> None:
    assert read_deny_list("x" * 1000, "d").find("x" * 1000) == 1


def test_a_pattern_without_re2_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "re2", None)
    with pytest.raises(SettingsError, match=r"streaming-gateway\[deny\]"):
        read_deny_list("re: a", "d")
    assert read_deny_list("a", "d").find("xax") == 1


def test_a_pattern_that_blows_up_elsewhere_is_linear_here() -> None:
    deny = read_deny_list("re: ^(a+)+$", "d")
    assert deny.find("a" * 200_000 + "!") is None


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([["for", "bidden"]], True),
        ([["two", "words"]], True),
        ([["two"], ["words"]], True),
        ([["for"], ["bidden"]], False),
        ([["x", "forbidden", "y"]], True),
        ([], False),
    ],
)
def test_a_text_is_found_across_the_parts_of_a_message(parts: list[list[str]], found: bool) -> None:
    assert (read_deny_list(LIST, "d").find_in_prompt(parts) is not None) == found


WORDS = st.text("ab", min_size=1, max_size=4)


@given(st.lists(WORDS, min_size=1, max_size=8), st.text("abc", max_size=40))
def test_the_automaton_finds_what_a_search_one_by_one_finds(words: list[str], text: str) -> None:
    trie, state = AhoCorasick([(word, number) for number, word in enumerate(words, 1)]), 0
    hits = []
    for end, char in enumerate(text, 1):
        state = trie.step(state, char)
        hits.append(trie.hit[state])
        ends = [text[:end].endswith(word) for word in words]
        assert bool(trie.hit[state]) == any(ends)
        begun = [k for k in range(1, 5) if any(word[:k] == text[end - k : end] for word in words) and k <= end]
        assert trie.depth[state] == max(begun, default=0)
    many = [(f"filler{n}", 100 + n) for n in range(100)] + [(w, n) for n, w in enumerate(words, 1)]
    assert (DenyList(many, (), "").find(text) is not None) == any(word in normalize(text) for word in words)


# -- over loopback


@pytest.fixture
def deny_file(tmp_path: Path) -> str:
    (tmp_path / "deny.txt").write_text(LIST)
    return str(tmp_path / "deny.txt")


def denied(answer: Answer) -> bool:
    if answer.status != 400:
        return False
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "denied content" in error["message"]
    if "type" not in answer.json():  # Anthropic's errors have no code
        assert error["code"] == "content_denied"
    assert "orbidden" not in answer.body.decode()
    return True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, HELLO | {"messages": [{"role": "user", "content": "so FORBIDDEN"}]}),
        (CHAT, HELLO | {"messages": [{"role": "user", "content": [{"type": "text", "text": "forbidden"}]}]}),
        (
            CHAT,
            HELLO
            | {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "forb"}, {"type": "text", "text": "idden"}],
                    }
                ]
            },
        ),
        (CHAT, HELLO | {"tools": [{"type": "function", "function": {"name": "f", "description": "forbidden"}}]}),
        ("/v1/completions", {"model": "m1", "prompt": ["fine", "forbidden"]}),
        ("/v1/embeddings", {"model": "m1", "input": "forbidden"}),
        ("/embed", {"model": "m1", "input": "forbidden"}),
        ("/v1/responses", {"model": "m1", "input": [{"content": [{"text": "for"}, {"text": "bidden"}]}]}),
        ("/v1/messages", {"model": "m1", "system": "forbidden", "messages": []}),
    ],
)
async def test_a_denied_prompt_is_refused_on_every_path_and_not_repeated(
    engine: Engine, deny_file: str, tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    log = tmp_path / "log"
    async with gateway(engine, deny_file=deny_file, log_to=log) as app:
        assert denied(await post_json(app.url, path, body))
        assert engine.requests == []
        page = await post_json_metrics(app.url)
    assert 'gateway_content_denied_total{where="prompt"} 1' in page
    (event,) = [line for line in lines(log) if line["msg"] == "content denied"]
    assert event["rule"] == 3
    assert "orbidden" not in log.read_text()


async def post_json_metrics(url: str) -> str:
    from tests.kit.client import get

    return (await get(url, "/metrics")).body.decode()


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1], [2]]])
async def test_token_ids_cannot_be_checked_and_are_no_way_around(
    engine: Engine, deny_file: str, prompt: list[Any]
) -> None:
    async with gateway(engine, deny_file=deny_file) as app:
        answer = await post_json(app.url, "/v1/completions", {"model": "m1", "prompt": prompt})
        assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_value")
        assert engine.requests == []


async def test_what_breaks_no_rule_goes_up_untouched(engine: Engine, deny_file: str) -> None:
    engine.auto(echo_script())
    async with gateway(engine, deny_file=deny_file) as app:
        assert (await post_json(app.url, CHAT, HELLO)).status == 200
        assert engine.requests[0].body == json.dumps(HELLO).encode()


async def test_a_list_is_read_again_and_a_bad_one_is_not_taken(
    engine: Engine, deny_file: str, tmp_path: Path
) -> None:
    write = Path(deny_file).write_text
    engine.auto(echo_script())
    log = tmp_path / "log"
    async with gateway(engine, deny_file=deny_file, log_to=log) as app:
        write("hello\n")
        await app.reload()
        assert denied(await post_json(app.url, CHAT, HELLO))
        write("re: (\n")
        await app.reload()
        assert denied(await post_json(app.url, CHAT, HELLO))
        await asyncio.sleep(0)
    told = {line["msg"] for line in lines(log)}
    assert {"reloaded", "not reloaded"} <= told

"""The committed data: manifest and files agree, sizes stay small, what is composed is what the generator makes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from corpus import calibrate, manifest
from corpus.bank import BYTES_PER_TOKEN, DATA, bank, one_token_words
from corpus.manifest import CorpusError, Entry, entries, parse, verify
from corpus.sources import DEFAULT_SETS, documents

MAX_BYTES = 1_500_000


def test_manifest_and_files_agree_to_the_byte() -> None:
    assert verify() == []


def test_the_data_stays_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < MAX_BYTES


def test_the_documents_are_what_the_generator_makes_from_its_seed() -> None:
    made = b"".join(msgspec.json.encode(entry) + b"\n" for entry in documents(60, 1))
    assert made == (DATA / "documents.jsonl").read_bytes()


def test_every_set_has_measured_tokens_and_an_error_of_its_estimate() -> None:
    for one in manifest.manifest().set:
        assert one.tokens is not None
        assert one.tokens.total / one.prompts == pytest.approx(one.tokens.mean, abs=0.06)
        assert one.bytes / one.tokens.total == pytest.approx(one.tokens.bytes_per_token, abs=0.001)
        assert 0 < one.tokens.error_p50 <= one.tokens.error_p90 < 0.5


def test_the_estimate_that_composing_uses_is_the_measured_one() -> None:
    composed = manifest.manifest().composed
    assert composed.bytes_per_token == BYTES_PER_TOKEN
    assert composed.one_token_words == len(one_token_words()) == len(set(one_token_words()))


def test_no_text_is_there_twice() -> None:
    texts = [
        msgspec.json.encode(entry.messages or entry.input)
        for s in manifest.manifest().set
        for entry in entries(s.name)
    ]
    assert len(set(texts)) == len(texts)


def test_languages_and_emoji_are_really_there() -> None:
    langs = {entry.lang for entry in entries("languages")}
    text = "".join(text for entry in entries("languages") for text in entry.texts())
    assert len(langs) >= 27
    assert {"emoji", "mixed", "ar", "hi", "ja", "zh"} <= langs
    assert "👩‍🚒" in text
    assert "漏水" in text


def test_shared_system_prompts_come_in_groups_of_one_text() -> None:
    groups: dict[str | None, set[str]] = {}
    for entry in entries("shared-system"):
        groups.setdefault(entry.group, set()).add(entry.texts()[0])
    assert len(groups) == 6
    assert all(len(texts) == 1 for texts in groups.values())


def test_conversations_alternate_and_end_with_the_user() -> None:
    for entry in entries("multi-turn"):
        roles = [message.role for message in entry.messages or () if message.role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert len(roles) >= 3


def test_the_default_sets_exist_and_every_slot_of_the_bank_is_known() -> None:
    assert set(DEFAULT_SETS) <= {one.name for one in manifest.manifest().set}
    slots = {part for kind in bank().kinds for text in kind.sentences + kind.titles for part in text[1::2]}
    assert slots <= bank().words.keys() | {"n", "big", "year", "pct", "time"}
    assert all(text.isascii() for words in bank().words.values() for text in words)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"{", "test.jsonl:2: "),
        (b'{"id": 5, "input": "x"}', "test.jsonl:2: .*str"),
        (b'{"id": "a"}', "test.jsonl:2: must have either messages or input"),
        (b'{"id": "a", "input": "x", "messages": []}', "test.jsonl:2: must have either"),
        (b'{"id": "a", "input": " "}', "test.jsonl:2: has an empty text"),
        (b'{"id": "a", "input": "x", "extra": 1}', "test.jsonl:2: .*extra"),
        (b'{"id": "a", "messages": [{"role": "assistant", "content": "x"}]}', "test.jsonl:2: the last message"),
        (b"", "test.jsonl:2: "),
        (b'{"id": "\xff", "input": "x"}', "test.jsonl:2: "),
    ],
)
def test_a_broken_line_is_named_by_its_number(line: bytes, wrong: str) -> None:
    with pytest.raises(CorpusError, match=wrong):
        parse("test.jsonl", b'{"id": "ok", "input": "fine"}\n' + line + b'\n{"id": "c", "input": "d"}\n')


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"test\.jsonl: is empty"):
        parse("test.jsonl", b"")


def test_a_changed_file_a_missing_one_and_a_stray_one_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in DATA.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(manifest, "DATA", tmp_path)
    assert verify() == []
    with (tmp_path / "code.jsonl").open("ab") as file:
        file.write(b'{"id": "code/000", "input": "again"}\n')
    (tmp_path / "languages.jsonl").unlink()
    (tmp_path / "stray.jsonl").write_text("{}\n")
    found = "\n".join(verify())
    for wrong in (
        "says prompts 40, the file has 41",
        "sha256",
        "code/000 is there twice",
        "languages.jsonl",
        "stray",
    ):
        assert wrong in found


def test_an_unknown_set_is_answered_with_the_known_ones() -> None:
    with pytest.raises(CorpusError, match="no set 'shrot'; there are short-chat, code"):
        entries("shrot")


def test_calibrating_counts_what_the_tokenizer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tokenizer of one token a word the numbers can be counted by hand."""
    old = manifest.manifest()
    new = calibrate.calibrated(old, lambda text: len(text.split()))
    words = [sum(len(text.split()) for text in entry.texts()) for entry in entries("embeddings")]
    tokens = new.named("embeddings").tokens
    assert tokens is not None
    assert (tokens.total, tokens.max) == (sum(words), max(words))
    assert [(s.sha256, s.prompts, s.bytes) for s in new.set] == [(s.sha256, s.prompts, s.bytes) for s in old.set]
    monkeypatch.setattr(calibrate, "MANIFEST", tmp_path / "manifest.toml")
    monkeypatch.setattr(manifest, "MANIFEST", tmp_path / "manifest.toml")
    calibrate.write(new)
    manifest.manifest.cache_clear()
    try:
        assert manifest.manifest() == new
    finally:
        manifest.manifest.cache_clear()


def test_a_word_of_two_tokens_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"words\.txt: 'time' has 2 tokens"):
        calibrate._composed(lambda text: 2)


def test_a_server_that_cannot_count_is_said_so() -> None:
    with pytest.raises(CorpusError, match="did not count"):
        calibrate.server_count("http://127.0.0.1:1")("x")


def test_an_entry_is_written_as_it_is_read() -> None:
    entry = Entry("a/1", input="x")
    assert parse("f", msgspec.json.encode(entry)) == [entry]

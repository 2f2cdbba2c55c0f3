"""Traces: our own, Mooncake's and Azure's, replayed with their times, lengths and shared blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from corpus.__main__ import main
from corpus.bank import BYTES_PER_TOKEN
from corpus.blocks import block_bytes
from corpus.measure import Prefixes, prompt_bytes
from loadgen.errors import WorkloadError
from loadgen.workload.model import Item, Options
from loadgen.workload.workload import describe_sent, open_workload


def replay(path: Path | str, **more: Any) -> list[Item]:
    options = msgspec.convert({"dataset_name": "trace", "dataset_path": str(path), **more}, Options)
    return list(open_workload(options).requests())


def written(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def mooncake(at: float, length: int, blocks: list[int], output: int = 5) -> dict[str, Any]:
    return {"timestamp": at, "input_length": length, "output_length": output, "hash_ids": blocks}


@pytest.mark.parametrize("endpoint", ["chat", "completions", "embeddings"])
def test_a_composed_workload_is_replayed_to_the_byte(tmp_path: Path, endpoint: str) -> None:
    path = tmp_path / "w.jsonl"
    flags = ["--num-prompts", "50", "--duplicates", "0.4", "--input-len", "30", "--endpoint", endpoint]
    assert main(["compose", *flags, "--out", str(path)]) == 0
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    items = replay(path, endpoint=endpoint)
    assert [(i.prompt.id, i.prompt.fields, i.at_s) for i in items] == [
        (r["id"], r["fields"], r["at"]) for r in rows
    ]
    assert describe_sent(items)["duplicate_share"] == 0.4
    assert len(replay(path, endpoint=endpoint, num_prompts=7)) == 7


def test_mooncakes_shared_blocks_become_shared_text(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        mooncake(0, 1300, [0, 1, 2], 9),
        mooncake(2500, 1536, [0, 1, 3]),
        mooncake(4000, 1300, [0, 1, 2], 9),
        mooncake(1000, 600, [7, 8]),
    )
    items = replay(path, endpoint="completions")
    assert [item.at_s for item in items] == [0, 1.0, 2.5, 4.0]
    cache = Prefixes(block_bytes())
    assert [cache.add(prompt_bytes(item.prompt.fields)) for item in items] == [0, 0, 2, 2]
    assert len(items[0].prompt.fields["prompt"]) == round(1300 * BYTES_PER_TOKEN)
    assert items[0].prompt == items[3].prompt
    assert items[0].prompt.fields["max_tokens"] == 9


def test_a_clock_of_three_seconds_is_spread_within_its_slots_and_the_name_says_so(tmp_path: Path) -> None:
    rows = [mooncake(3000 * (n // 10), 100, [n]) for n in range(200)]
    path = written(tmp_path, *rows)
    times = [item.at_s or 0 for item in replay(path)]
    assert len(set(times)) == 200
    assert times == sorted(times)
    assert [int(t // 3) for t in times] == [n // 10 for n in range(200)]
    options = Options(dataset_name="trace", dataset_path=str(path))
    assert open_workload(options).name == "trace:trace.jsonl (times spread within 3 s)"
    assert len({item.at_s for item in replay(path, trace_jitter=0.0)}) == 20


def test_azures_lines_become_prompts_of_their_length(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2023-11-16 18:16:00,8,1\n"
    )
    items = replay(path, endpoint="completions")
    assert [round(item.at_s or 0, 3) for item in items] == [0, 4.315, 13.319]
    assert [item.prompt.fields["max_tokens"] for item in items] == [44, 109, 1]
    sizes = [len(item.prompt.fields["prompt"]) / BYTES_PER_TOKEN for item in items]
    assert sizes == pytest.approx([374, 396, 8], abs=0.2)
    assert describe_sent(items)["distinct_prompts"] == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"{\n", ":2: is not JSON"),
        (mooncake(-1, 10, [1]), ":2: timestamp must be a time"),
        (mooncake(0, 0, [1]), ":2: input_length must be a whole number"),
        (mooncake(0, 600, [1]), ":2: 1 hash_ids of 512 tokens do not make an input_length of 600"),
        (mooncake(0, 512, [1, 2]), ":2: 2 hash_ids"),
        ({"timestamp": 0, "input_length": 5}, ":2: output_length must be"),
        ({"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}, ":2: hash_ids must be"),
        ({"timestamp": "x", "input_length": 5, "output_length": 1}, ":2: timestamp must be a time"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, row: Any, words: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        replay(written(tmp_path, mooncake(0, 10, [1]), row))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2023-11-16 18:15:46,374", ":3: must be a time and two whole numbers"),
        ("yesterday,1,1", ":3: "),
        ("2023-11-16 18:15:46,many,1", ":3: must be a time and two whole numbers"),
        ("2023-11-16 18:15:46,0,1", ":3: ContextTokens must be"),
    ],
)
def test_a_broken_line_of_azures_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n{line}\n")
    with pytest.raises(WorkloadError) as caught:
        replay(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,3\n", ":1: the columns must be TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "there is no request"),
        ('{"prompt": "x"}\n', ":1: is not a known trace format"),
    ],
)
def test_a_file_that_is_no_trace_is_answered_with_the_ones_that_are(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        replay(path)
    assert words in str(caught.value)


def test_a_workload_for_another_endpoint_or_with_a_doubtful_id_is_refused(tmp_path: Path) -> None:
    row = {"id": "a", "endpoint": "completions", "at": 0, "fields": {"prompt": "x"}}
    path = written(tmp_path, row)
    with pytest.raises(WorkloadError, match="is for the endpoint 'completions', and this run is for 'chat'"):
        replay(path)
    path = written(tmp_path, row, {**row, "fields": {"prompt": "y"}})
    with pytest.raises(WorkloadError, match=":2: the id 'a' is used for two different prompts"):
        replay(path, endpoint="completions")
    path = written(tmp_path, {**row, "fields": {}})
    with pytest.raises(WorkloadError, match=":1: must have an id and fields with prompt"):
        replay(path, endpoint="completions")


def test_duplicates_are_not_added_to_a_trace(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="has its own duplicates"):
        replay(written(tmp_path, mooncake(0, 10, [1])), duplicates=0.5)


def test_unique_keeps_twins_and_parts_everything_else(tmp_path: Path) -> None:
    path = written(tmp_path, mooncake(0, 600, [1, 2]), mooncake(5, 600, [1, 3]), mooncake(9, 600, [1, 2]))
    found = describe_sent(replay(path, unique=True, salt="s"))
    assert found["distinct_prompts"] == 2
    first, second, third = replay(path, unique=True, salt="s")
    assert first.prompt == third.prompt
    cache = Prefixes(16)
    assert [cache.add(prompt_bytes(i.prompt.fields)) for i in (first, second)] == [0, 0]


def recorded(at: float, name: str, endpoint: str = "chat") -> dict[str, Any]:
    return {"at": at, "id": name, "bytes": 40, "endpoint": endpoint, "body": {"model": "m", "messages": [name]}}


def test_the_workers_recordings_are_merged_by_time(tmp_path: Path) -> None:
    for worker, rows in enumerate(([recorded(10.0, "a"), recorded(12.0, "b")], [recorded(11.0, "c")], [])):
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        (tmp_path / f"traffic-worker{worker}").write_bytes(lines)
    items = replay(tmp_path / "traffic-worker*", dataset_name="recording")
    assert [(item.prompt.fields["messages"], item.at_s) for item in items] == [(["a"], 0), (["c"], 1), (["b"], 2)]


def test_a_pattern_without_files_or_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"nothing-\*: no such file"):
        replay(tmp_path / "nothing-*", dataset_name="recording")
    for worker in range(2):
        (tmp_path / f"w{worker}").write_bytes(msgspec.json.encode(recorded(1.0, "a", "embeddings")))
    with pytest.raises(WorkloadError, match=r"w\*: has no request to chat"):
        replay(tmp_path / "w*", dataset_name="recording")

"""The recording of requests: bounded, rotated, without secrets, and replayable by the load generator."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from loadgen.workload.model import Options
from loadgen.workload.workload import open_workload
from proxy.errors import SettingsError
from proxy.telemetry import Recorded, Recording
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import gateway, until
from tests.proxy.telemetry.test_metrics import samples

CHAT = "/v1/chat/completions"


def recorded(at: float = 1.5, **more: Any) -> Recorded:
    fields: dict[str, Any] = {"endpoint": "chat", "model": "m", "stream": True, "status": 200, "verdict": "miss"}
    return Recorded(at=at, total_ms=3.0, **fields | more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def body(text: str, **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def make(path: Path, **more: Any) -> Recording:
    return Recording(str(path), **{"whole": False, "max_bytes": 10**6, "files": 3, **more})


def test_equal_prompts_have_equal_hashes_and_no_text_is_kept(tmp_path: Path) -> None:
    recording = make(tmp_path / "r")
    long = "the same beginning " * 300
    for text in (long, long, long + "another end"):
        recording.put(recorded(), body(text), text.encode())
    recording.close(30)
    one, two, three = lines(tmp_path / "r")
    assert one["id"] == two["id"] != three["id"]
    assert one["blocks"] == two["blocks"]
    assert len(one["blocks"]) == len(three["blocks"]) == 12
    assert one["blocks"][:11] == three["blocks"][:11]
    assert one["blocks"][11] != three["blocks"][11]
    assert "beginning" not in (tmp_path / "r").read_text()
    assert stat.S_IMODE(os.stat(tmp_path / "r").st_mode) == 0o600


def test_hashes_of_two_processes_cannot_be_compared(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recording = make(tmp_path / name)
        recording.put(recorded(), body("x"), b"x")
        recording.close(30)
    assert lines(tmp_path / "a")[0]["id"] != lines(tmp_path / "b")[0]["id"]


def test_a_whole_body_is_kept_without_the_members_that_name_people(tmp_path: Path) -> None:
    recording = make(tmp_path / "r", whole=True)
    recording.put(recorded(), body("hi", user="ada", metadata={"who": "ada"}, temperature=0), b"hi")
    recording.close(30)
    (line,) = lines(tmp_path / "r")
    assert line["body"] == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def test_files_are_rotated_by_size_and_the_oldest_is_deleted(tmp_path: Path) -> None:
    recording = make(tmp_path / "r", max_bytes=400)
    for number in range(20):
        recording.put(recorded(at=float(number)), body("x"), b"x")
    recording.close(30)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["r", "r.1", "r.2"]
    assert all((tmp_path / name).stat().st_size <= 400 for name in names)
    kept = [line["at"] for name in reversed(names) for line in lines(tmp_path / name)]
    assert kept == sorted(kept)
    assert kept[-1] == 19.0
    assert len(kept) < 20 == recording.written


def test_one_file_begins_anew(tmp_path: Path) -> None:
    recording = make(tmp_path / "r", max_bytes=400, files=1)
    for number in range(9):
        recording.put(recorded(at=float(number)), body("x"), b"x")
    recording.close(30)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert lines(tmp_path / "r")[-1]["at"] == 8.0


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path) -> None:
    recording = make(tmp_path / "r", max_pending=100)
    recording.put(recorded(), body("x"), b"x")
    recording.close(30)
    assert (recording.dropped, recording.written) == (1, 0)


def test_a_long_body_is_recorded_by_its_length(tmp_path: Path) -> None:
    recording = make(tmp_path / "r", whole=True)
    recording.put(recorded(), b" " * (4 * 1024 * 1024 + 1), b"")
    recording.close(30)
    (line,) = lines(tmp_path / "r")
    assert "body" not in line
    assert line["bytes"] == 4 * 1024 * 1024 + 1


def test_a_full_disk_is_told_and_leaves_no_line_in_pieces(tmp_path: Path) -> None:
    told: list[str] = []
    recording = Recording("/dev/full", whole=False, max_bytes=10**6, files=2, tell=told.append)
    recording.put(recorded(), body("x"), b"x")
    recording.close(30)
    assert (recording.dropped, recording.written) == (1, 0)
    assert "No space left" in told[0]


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"record_file = .*: cannot be written: No such file or directory"):
        make(tmp_path / "missing" / "r")


@pytest.mark.parametrize("prompts", ["hashed", "whole"])
async def test_traffic_is_recorded_and_replayed_with_its_times_and_duplicates(
    tmp_path: Path, prompts: str
) -> None:
    path = tmp_path / "traffic.jsonl"
    texts = ["What is red?", "Name three rivers.", "What is red?"]
    async with (
        Engine(echo_script(tokens=5)) as engine,
        gateway(engine, record_file=str(path), record_prompts=prompts) as app,
    ):
        for text in texts:
            request = {"model": "m1", "messages": [{"role": "user", "content": text}], "temperature": 0}
            await post_json(app.url, CHAT, request, headers=[("authorization", "Bearer sk-very-secret")])
        await post_json(app.url, CHAT, {"model": "m1"})  # refused before it is a request
        # A line is counted after it is written.
        await until(lambda: samples(app.metrics)["gateway_recorded_requests_total"] == 3)
        page = (await get(app.url, "/metrics")).body.decode()
    assert "gateway_recorded_requests_total 3" in page
    told = lines(path)
    assert [line["completion_tokens"] for line in told] == [5, 5, 5]
    assert [line["verdict"] for line in told][:2] == ["miss", "miss"]
    assert "sk-very-secret" not in path.read_text()
    assert ("red" in path.read_text()) == (prompts == "whole")
    items = list(open_workload(Options(dataset_name="recording", dataset_path=str(path))).requests())
    assert [round(item.at_s or 0.0, 3) for item in items] == [
        round(line["at"] - told[0]["at"], 3) for line in told
    ]
    assert items[0].prompt == items[2].prompt != items[1].prompt
    if prompts == "whole":
        assert [item.prompt.fields["messages"][0]["content"] for item in items] == texts
        assert items[0].prompt.fields["temperature"] == 0
        assert "model" not in items[0].prompt.fields
    else:
        assert items[0].prompt.fields["max_tokens"] == 5

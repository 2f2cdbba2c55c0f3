"""Bad input, case by case to the end of the process: a clear message, a report of what there is, the exit code.

The parts have tests of their own (test_client_failures.py, test_decode.py, test_files.py); here is what
a person sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from loadgen.record import Kind, Record
from loadgen.store import read_records
from tests.loadgen.kit.program import program
from tests.loadgen.kit.servers import (
    DONE,
    EVENT,
    FINAL,
    HEAD,
    LAST,
    Handler,
    answering,
    chunk,
    read_request,
    serving,
    whole,
)

ROOT = Path(__file__).parent.parent.parent.parent
LENIENT = (
    *("--limit-error-ms", "1e9", "--limit-late-ms", "1e9", "--limit-cpu", "1e9", "--limit-censored", "1"),
    *("--quiet", "--max-concurrency", "1"),
)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
STREAM = EVENT + FINAL + USAGE + DONE


class Seen(NamedTuple):
    code: int
    said: str
    records: list[Record]
    report: str  # report.md; empty: there is none


async def loadgen(tmp_path: Path, *words: str, limit: int | None = None, plots: bool = False) -> Seen:
    """`python -m loadgen` with these words, under `ulimit -n LIMIT` where one is given."""
    out = tmp_path / "out"
    command = program(*words, "--result-dir", str(out), plots=plots)
    if limit is not None:
        command = ["bash", "-c", f'ulimit -n {limit} && exec "$@"', "-", *command]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    folders = list(out.iterdir()) if out.exists() else []
    records = [record for folder in folders for record in read_records(folder)]
    report = "".join((folder / "report.md").read_text() for folder in folders)
    said = output.decode()
    assert "Traceback" not in said, said
    return Seen(process.returncode, said, records, report)


async def asked(tmp_path: Path, handler: Handler, *more: str, plots: bool = False) -> Seen:
    """Two requests to a server of these bytes."""
    async with serving(handler) as url:
        words = ("run", "--base-url", url, "--model", "m", "--prompt", "hi", "--num-prompts", "2")
        return await loadgen(tmp_path, *words, *LENIENT, *more, plots=plots)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def byte_by_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await read_request(reader)
        for byte in HEAD + chunk(STREAM) + LAST:
            writer.write(bytes([byte]))
            await writer.drain()


# Answers that are failures: exit 1, the kind and the words in the report


@pytest.mark.parametrize(
    ("answer", "failure", "words"),
    [
        (whole("404 Not Found", b'{"detail":"Not Found"}'), "status", "404"),
        (whole("401 Unauthorized", b'{"error":{"message":"no key"}}'), "status", "401: no key"),
        (whole("429 Too Many Requests", b'{"error":{"message":"slow down"}}'), "status", "429: slow down"),
        (whole("503 Busy", b'{"error":{"message":"loading"}}'), "status", "503: loading"),
        (HEAD + chunk(EVENT), "truncated", "middle of"),
        (HEAD + chunk(EVENT) + LAST, "truncated", "[DONE]"),
        (
            HEAD + chunk(EVENT) + chunk(b'data: {"error":{"message":"engine died"}}\n\n') + LAST,
            "error_frame",
            "engine died",
        ),
        (HEAD + chunk(b"data: {" + b"x" * 3000 + b"\n\n") + LAST, "garbage", "larger than 2048 bytes"),
        (HEAD + chunk(b"data: nonsense\n\n" + DONE) + LAST, "garbage", "JSON"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "garbage", "not HTTP"),
    ],
    ids=["wrong path", "401", "429", "5xx", "cut", "no DONE", "error frame", "huge event", "garbage", "not HTTP"],
)
async def test_a_bad_answer_is_a_failure_with_its_kind_and_words(
    tmp_path: Path, answer: bytes, failure: str, words: str
) -> None:
    seen = await asked(tmp_path, answering(answer, close=True), "--max-response-bytes", "2048")
    assert seen.code == 1, seen.said
    assert [record.failure for record in seen.records] == [failure] * 2
    assert all(words in record.detail for record in seen.records), seen.records
    for place in (seen.said, seen.report):
        assert failure.replace("_", " ") in place.replace("_", " "), place


async def test_a_server_that_never_answers_is_a_timeout(tmp_path: Path) -> None:
    seen = await asked(tmp_path, silent, "--request-timeout", "0.05", plots=True)
    assert (seen.code, [record.failure for record in seen.records]) == (1, ["timeout"] * 2)
    assert "--request-timeout" in seen.records[0].detail
    assert "timeout" in seen.report


async def test_an_unknown_server_is_said_before_the_run_or_in_its_report(tmp_path: Path) -> None:
    words = ("run", "--base-url", "http://no-such-host.invalid", "--prompt", "hi", "--num-prompts", "1", *LENIENT)
    seen = await loadgen(tmp_path, *words)
    assert (seen.code, seen.records) == (2, [])
    assert "unknown host no-such-host.invalid" in seen.said
    seen = await loadgen(tmp_path, *words, "--model", "m")
    assert (seen.code, [record.failure for record in seen.records]) == (1, ["refused"])
    assert "refused" in seen.report


# Answers that look odd and are right: exit 0


@pytest.mark.parametrize(
    "handler",
    [
        answering(HEAD + chunk(STREAM.replace(b"\n", b"\r\n")) + LAST),
        answering(HEAD + chunk(STREAM.replace(b"data: ", b"data:")) + LAST),
        byte_by_byte,
    ],
    ids=["CRLF", "no space", "split at every byte"],
)
async def test_every_spelling_of_a_good_answer_is_read(tmp_path: Path, handler: Handler) -> None:
    seen = await asked(tmp_path, handler)
    assert seen.code == 0, seen.said
    kinds = [Kind.CONTENT, Kind.CONTENT, Kind.USAGE, Kind.DONE]
    assert [[event.kind for event in record.events] for record in seen.records] == [kinds] * 2
    assert [record.completion_tokens for record in seen.records] == [2, 2]


async def test_missing_usage_is_no_failure_and_no_count(tmp_path: Path) -> None:
    seen = await asked(tmp_path, answering(HEAD + chunk(EVENT + FINAL + DONE) + LAST), plots=True)
    assert (seen.code, [record.completion_tokens for record in seen.records]) == (0, [None] * 2)
    assert "usage" in seen.report


# Files and limits: exit 2 before anything is sent


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("custom", '{"prompt": "good"}\n{not json}\n', ":2: is not JSON"),
        (
            "custom",
            '{"prompt": "good"}\n{"text": "no prompt"}\n',
            ":2: must have exactly one of prompt, messages or input",
        ),
        ("custom", "\n \n", "is empty"),
        ("custom", None, "No such file"),
        ("sharegpt", "[{]", "is not JSON"),
        (
            "trace",
            '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [0]}\n{"timestamp":\n',
            ":2: ",
        ),
        ("trace", "a,b\n1,2\n", ":1: the columns must be TIMESTAMP"),
    ],
)
async def test_a_broken_file_is_named_with_its_line_before_anything_is_sent(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    path = tmp_path / "prompts"
    if text is not None:
        path.write_text(text)
    given = ("run", "--base-url", "http://127.0.0.1:1", "--model", "m", *LENIENT)
    seen = await loadgen(tmp_path, *given, "--dataset-name", name, "--dataset-path", str(path))
    assert (seen.code, seen.records, seen.report) == (2, [], "")
    assert f"loadgen: {path}" in seen.said
    assert words in seen.said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--corpus-set", "nope"), "there is no set 'nope'; there are short-chat"),
        (("--dataset-name", "trace"), "needs a file: --dataset-path FILE"),
        (("--dataset-name", "random", "--random-input-len", "0"), "--random-input-len must be 1 to"),
        (("--dataset-path", "x"), "--dataset-path applies to custom, sharegpt, trace, burstgpt and recording"),
        (("--duplicates", "2"), "--duplicates must be 0 to 0.999"),
    ],
)
async def test_a_workload_that_cannot_be_is_refused(tmp_path: Path, words: Sequence[str], said: str) -> None:
    seen = await loadgen(tmp_path, "run", "--base-url", "http://127.0.0.1:1", "--model", "m", *LENIENT, *words)
    assert (seen.code, seen.records) == (2, [])
    assert said in seen.said


@pytest.mark.parametrize(("wanted", "limit", "needed"), [("200", 128, 264), ("1", 40, 65)])
async def test_out_of_descriptors_is_said_before_starting_with_the_limit_to_set(
    tmp_path: Path, wanted: str, limit: int, needed: int
) -> None:
    words = ("run", "--base-url", "http://127.0.0.1:1", "--model", "m", "--max-concurrency", wanted)
    seen = await loadgen(tmp_path, *words, limit=limit)
    assert (seen.code, seen.records) == (2, [])
    assert f"run `ulimit -n {needed}` first" in seen.said


@pytest.mark.parametrize("command", ["ab", "sweep", "calibrate"])
async def test_workers_are_refused_where_there_are_none_with_the_reason(tmp_path: Path, command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *program(command, "--workers", "2"), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"--workers is for `run`: " in said


@pytest.mark.parametrize("flag", ["--label", "--model", "--prompt", "--metadata", "--dataset-path", "--api-key"])
async def test_an_argument_that_is_no_text_is_refused_before_anything_is_sent(tmp_path: Path, flag: str) -> None:
    """What the command line has is in run.json, which cannot hold it: the run was lost at its end."""
    async with serving(silent) as url:
        code, said, _, _ = await loadgen(tmp_path, "run", "--base-url", url, flag, "a=m\udcfcn")
    assert code == 2
    assert "argument 5 is no text in UTF-8" in said
    assert "a=m" not in said, "it may be a key"

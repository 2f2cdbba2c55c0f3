"""`--max-errors`: a run that fails ends early, says so in its verdict and exits with 1, with one process or
several."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from loadgen.cli.flags import values
from loadgen.spec import LEAST_ENDED, ErrorLimit
from loadgen.store import read_run
from tests.kit.engine import Engine, Turn
from tests.loadgen.cli.test_bad_input import LENIENT, Seen, loadgen
from tests.loadgen.kit.servers import answering, serving, whole

MORE = LENIENT[:-2]


async def refuse(turn: Turn) -> None:
    await turn.respond(503, {"error": {"message": "full"}})


async def run(tmp_path: Path, *words: str) -> Seen:
    async with Engine(refuse) as engine:
        return await loadgen(tmp_path, "run", "--base-url", engine.url, "--model", "m1", *MORE, *words)


def run_file(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "out").iterdir()
    return folder


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_run_ends_when_so_many_have_failed(tmp_path: Path, workers: str) -> None:
    words = ("--num-prompts", "5000", "--request-rate", "200", "--max-errors", "10", "--workers", workers)
    seen = await run(tmp_path, *words, "--max-error-rate", "1")
    assert seen.code == 1, seen.said
    assert "STOPPED EARLY (" in seen.said
    assert "requests failed, --max-errors 10), until then" in seen.said
    measured = [record for record in seen.records if record.failure == "status"]
    assert 10 <= len(measured) < 1500
    kept = read_run(run_file(tmp_path))
    assert kept.stopped
    assert not kept.interrupted
    assert kept.config["max_errors"] == 10


async def test_errors_in_bodies_of_status_200_end_the_run_too(tmp_path: Path) -> None:
    async with serving(answering(whole("200 OK", b'{"error":{"message":"boom"}}'))) as url:
        words = ("--num-prompts", "5000", "--request-rate", "200", "--max-errors", "5")
        seen = await loadgen(tmp_path, "run", "--base-url", url, "--model", "m1", *MORE, *words)
    assert seen.code == 1, seen.said
    assert "STOPPED EARLY (" in seen.said
    assert len(seen.records) < 1500


async def test_below_the_limit_the_run_goes_on_to_its_end(tmp_path: Path) -> None:
    seen = await run(tmp_path, "--num-prompts", "9", "--max-errors", "10", "--max-concurrency", "2")
    assert seen.code == 1
    assert "STOPPED EARLY" not in seen.said
    assert len(seen.records) == 9


def test_a_share_is_judged_once_enough_have_ended() -> None:
    limit = ErrorLimit(share=0.05)
    assert limit.reached(LEAST_ENDED - 1, LEAST_ENDED - 1) == ""
    assert limit.reached(1, LEAST_ENDED) == ""
    assert limit.reached(2, LEAST_ENDED) == "2 of 20 requests failed, --max-errors 5%"
    assert ErrorLimit(count=3).reached(2, 100) == ""
    assert ErrorLimit(count=3).reached(3, 3) == "3 requests failed, --max-errors 3"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("10", ErrorLimit(count=10)),
        ("5%", ErrorLimit(share=0.05)),
        ("0.25", ErrorLimit(share=0.25)),
        ("0%", ErrorLimit(share=0.0)),
    ],
)
def test_a_limit_is_a_number_or_a_share(text: str, limit: ErrorLimit) -> None:
    assert values.error_limit(text) == limit


@pytest.mark.parametrize("text", ["0", "-1", "100%", "x", "1.5", "", "nan", "inf", "1e3", "5%%"])
def test_any_other_limit_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="give a number of failed requests"):
        values.error_limit(text)

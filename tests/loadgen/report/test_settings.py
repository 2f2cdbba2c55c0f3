"""Only the settings that applied are listed."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.cli.flags import common as flags
from loadgen.cli.main import parser_for
from loadgen.record import Run
from loadgen.report.settings import settings_rows


def shown(command: str, words: str, **more: Any) -> dict[str, str]:
    args = parser_for([command]).parse_args([command, *words.split()])
    del args.main
    run = Run(
        date="",
        label="",
        command=["loadgen"],
        config={**flags.config_of(args), **more},
        targets={"a": "http://gpu-1:8000"},
        model="m",
        endpoint="/v1/chat/completions",
    )
    return dict(settings_rows(run))


def test_a_closed_loop_shows_neither_a_rate_nor_other_datasets_nor_another_address() -> None:
    rows = shown("run", "--base-url http://gpu-1:8000 --num-prompts 9", request_rate="inf", max_concurrency=8)
    assert rows["target a"] == "http://gpu-1:8000"
    assert (rows["max concurrency"], rows["num prompts"]) == ("8", "9")
    absent = {
        "host",
        "port",
        "base url",
        "request rate",
        "burstiness",
        "zipf",
        "grace seconds",
        "quiet",
        "unique salt",
    }
    assert not absent & set(rows)
    others = ("random", "sharegpt", "custom", "prefix repetition", "trace")
    assert [name for name in rows if name.startswith(others)] == []


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--request-rate 4", "request rate", "4"),
        ("--request-rate 4 --burstiness inf", "burstiness", "inf"),
        ("--dataset-name random", "random input len", "1024"),
        ("--duplicates 0.5", "zipf", "1.1"),
        ("--max-seconds 9", "grace seconds", "30"),
        ("--request-rate inf", "request rate", "inf"),
    ],
)
def test_a_setting_is_there_where_it_applied(words: str, name: str, value: str) -> None:
    assert shown("run", words)[name] == value


def test_a_sweep_has_its_own_rates_only() -> None:
    rows = shown("sweep", "--rates 1,2", request_rate=1.0, start_rate=1.0, stage_seconds=30.0)
    assert rows["rates"] == "1 2"
    assert not {"request rate", "start rate"} & set(rows)

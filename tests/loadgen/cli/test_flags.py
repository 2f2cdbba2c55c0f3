"""Flags: what was wrong and what would be right, vLLM's names, and secrets that stay out."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli.flags import common as flags
from loadgen.cli.flags import values
from loadgen.cli.main import COMMANDS, parser_for
from loadgen.cli.run import arrivals_of
from loadgen.errors import UsageError
from loadgen.secrets import Hide, is_secret, is_secret_field
from tests.loadgen.cli.test_find import loadgen
from tests.loadgen.kit.servers import read_request, serving, whole

MEASURING = ("run", "ab", "sweep", "calibrate")


def parsed(*words: str) -> argparse.Namespace:
    return parser_for(["run"]).parse_args(["run", *words])


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (values.number(0), "x", "not a number"),
        (values.number(0), "-1", "at least 0"),
        (values.number(0), "nan", "at least 0"),
        (values.number(0, above=True), "0", "above 0"),
        (values.number(0, 1), "2", "at most 1"),
        (values.whole(1), "1.5", "not a whole number"),
        (values.whole(1, 9), "10", "at most 9"),
        (values.url, "gpu-1:8000", "give http://HOST:PORT"),
        (values.url, "http://x:99999", "no usable port"),
        (values.url, "http://x/?a=b", "query"),
        (
            values.url,
            "http://x:1/v1/chat/completions",
            "give the server, http://x:1, and if need be",
        ),
        (values.url, "http://x/api/v1/models/", "give the server, http://x/api, and"),
        (values.header, "a: b\x00c", "control characters"),
        (values.header, "a: b\nc: d", "one line"),
        (values.header, "nothing", "NAME:VALUE"),
        (values.header, "a:b\r\nc:d", "on one line"),
        (values.pair, "x", "KEY=VALUE"),
        (values.json_object, "[1]", "give a JSON object"),
        (values.json_object, "{", "not JSON"),
        (values.json_object, '{"a": "\\ud83d"}', "not JSON"),
        (values.json_object, '{"a": NaN}', "NaN is no number of JSON"),
        (values.json_object, '{"a": %s}' % ("[" * 100_000 + "]" * 100_000), "not JSON"),
        (values.rates, ",", "give rates"),
        (values.rates, "1,0", "above 0"),
    ],
)
def test_a_wrong_value_says_what_would_be_right(read: Callable[[str], Any], text: str, said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        read(text)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (values.number(0, above=True), "inf", math.inf),
        (values.url, "http://x:1/v1/", "http://x:1"),
        (values.url, "https://x", "https://x"),
        (values.header, "A: b:c", ("A", "b:c")),
        (values.header, "A=b", ("A", "b")),
        (values.json_object, '{"a":1}', {"a": 1}),
        (values.rates, "4,1,2,2", [1, 2, 4]),
    ],
)
def test_a_right_value_is_read(read: Callable[[str], Any], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize("command", MEASURING)
def test_every_flag_says_what_it_is(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parser_for([command]).parse_args([command, "--help"])
    assert "usage: python -m loadgen" in capsys.readouterr().out


def test_the_commands_are_listed_without_importing_them() -> None:
    text = parser_for([]).format_help()
    assert all(name in text for name in COMMANDS)
    assert "exit codes: 0 a sound measurement" in text


def test_vllms_names_are_understood() -> None:
    text = """
        --backend openai-chat --base-url http://h:1 --endpoint /v1/chat/completions --model m
        --request-rate 5 --burstiness 0.5 --max-concurrency 9 --num-prompts 3 --seed 1 --label x
        --num-warmups 2 --ignore-eos --temperature 0 --top-p 0.9 --top-k 5 --insecure
        --ready-check-timeout-sec 5 --result-dir d --metadata a=b --goodput ttft:500 tpot:50
        --ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 2 --extra-body {} --header a=b
    """
    args = parsed(*text.split())
    assert (args.request_rate, args.burstiness, args.max_concurrency) == (5.0, 0.5, 9)
    assert args.goodput == ["ttft:500", "tpot:50"]


@pytest.mark.parametrize(
    ("words", "endpoint", "path"),
    [
        ("", "chat", "/v1/chat/completions"),
        ("--backend openai", "completions", "/v1/completions"),
        ("--backend openai-embeddings", "embeddings", "/v1/embeddings"),
        ("--endpoint /v1/completions", "completions", "/v1/completions"),
        ("--endpoint custom/embeddings", "embeddings", "/custom/embeddings"),
        ("--endpoint /chat", "chat", "/chat"),
    ],
)
def test_the_endpoint_is_told_by_path_or_backend(words: str, endpoint: str, path: str) -> None:
    args = parsed(*words.split())
    assert (flags.endpoint_of(args), flags.path_of(args)) == (endpoint, path)


def test_a_host_of_ipv6_is_bracketed() -> None:
    assert flags.base_of(parsed("--host", "::1", "--port", "81")) == "http://[::1]:81"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--ramp-up-strategy linear", "needs --ramp-up-start-rps"),
        ("--ramp-up-start-rps 1", "need --ramp-up-strategy"),
        (
            "--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 2 --request-rate 3",
            "remove --request-rate",
        ),
        ("--shed", "needs an open loop"),
        ("--shed --request-rate 3", "and --max-concurrency"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(words: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        arrivals_of(parsed(*words.split()))


def test_arrivals_are_closed_unless_a_rate_is_asked_for() -> None:
    schedule, pace = arrivals_of(parsed())
    assert (schedule.open_loop, pace.open_loop, pace.max_concurrency) == (False, False, 8)
    schedule, pace = arrivals_of(parsed("--request-rate", "inf"))
    assert (schedule.all_at_once, pace.open_loop, pace.max_concurrency) == (True, True, None)
    schedule, _ = arrivals_of(parsed("--request-rate", "2", "--burstiness", "inf"))
    assert (schedule.rate, schedule.burstiness) == (2.0, None)
    times = schedule.times([])
    assert times is not None
    assert [next(times) for _ in range(3)] == [0.0, 0.5, 1.0]


# Secrets


def test_no_secret_gets_into_the_config_or_the_recorded_command() -> None:
    words = ["--api-key", "sk-secret", "--header", "X-Auth-Token: tok-en1", "--header", "X-Trace: yes"]
    args = parsed(*words)
    hide = Hide(flags.secrets_of(args, {"OPENAI_API_KEY": "unused"}))
    text = json.dumps(flags.config_of(args)) + " ".join(map(hide, words))
    assert "sk-secret" not in text
    assert "tok-en1" not in text
    assert "X-Trace: yes" in text
    assert hide("401: bad key sk-secret") == "401: bad key ***"


def test_a_password_in_a_url_is_masked_wherever_it_is_written() -> None:
    url = "http://user:p%40ss-word@gpu-1:8000"
    words = ["--base-url", url, "--engine-metrics", url, "--cancel-metrics", f"{url}/metrics"]
    args = parsed(*words)
    hide = Hide(flags.secrets_of(args, {}))
    text = json.dumps(flags.config_of(args)) + " ".join(map(hide, words))
    assert "ss-word" not in text
    assert "user" not in text
    assert text.count("http://***@gpu-1:8000") == 6
    assert hide("denied: p@ss-word, p%40ss-word, Basic dXNlcjpwQHNzLXdvcmQ=") == "denied: ***, ***, Basic ***"
    assert hide("http://u:pw@h:1/x and https://h/@user") == "http://***@h:1/x and https://h/@user"


@pytest.mark.parametrize("words", [["--api-key", "sk-1"], ["--header", "authorization: Bearer x"]])
def test_a_key_beside_a_password_in_the_url_is_refused(words: list[str]) -> None:
    """It was a traceback of the HTTP library's."""
    args = parsed("--base-url", "http://user:pw@gpu-1:8000", *words)
    with pytest.raises(UsageError, match="are the same header of a request: give one of them"):
        flags.http_of(args, {})


def test_secrets_in_the_body_and_the_metadata_are_masked() -> None:
    body = {
        "api_key": "sk-body",
        "max_tokens": 5,
        "stop_token_ids": [1],
        "nested": [{"accessToken": 'a"b-deep', "model": "kept"}],
        "auth": {"user": "bob-1"},
    }
    words = ["--extra-body", json.dumps(body), "--metadata", "api_key=sk-meta", "pass_rate=0.9", "--header"]
    words += ["X-Session: sess-1", "X-Api-Credential: cred-1", "X-Pass: pass-1", "X-Compass: north"]
    args = parsed(*words)
    hide = Hide(flags.secrets_of(args, {}))
    config = flags.config_of(args)
    text = json.dumps(config) + " ".join(map(hide, words))
    for secret in ("sk-body", "b-deep", "bob-1", "sk-meta", "sess-1", "cred-1", "pass-1"):
        assert secret not in text
    assert config["extra_body"] == {
        "api_key": "***",
        "max_tokens": 5,
        "stop_token_ids": [1],
        "nested": [{"accessToken": "***", "model": "kept"}],
        "auth": {"user": "***"},
    }
    assert config["metadata"] == {"api_key": "***", "pass_rate": "0.9"}
    assert "X-Compass: north" in config["header"]
    assert flags.body_of(args, "m").extra == body


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("X-Session", "x-session-id", "X-Credential", "x_jwt", "X-Hub-Signature-256")),
        *((name, True) for name in ("pass", "db_pass", "apiKey", "hf_token", "APIKey", "client.secret")),
        *((name, False) for name in ("compass", "pass_rate", "max_tokens", "tokenizer", "author", "bypass")),
        *((name, False) for name in ("passes", "monkey", "obsession", "")),
    ],
)
def test_a_name_is_secret_by_its_words(name: str, secret: bool) -> None:
    assert is_secret_field(name) is secret
    assert is_secret(name) or not secret


def test_the_environments_key_is_sent_and_hidden() -> None:
    http = flags.http_of(parsed(), {"OPENAI_API_KEY": "sk-env"})
    assert http.headers == (("Authorization", "Bearer sk-env"),)
    assert Hide(flags.secrets_of(parsed(), {"OPENAI_API_KEY": "sk-env"}))("x sk-env") == "x ***"
    given = Hide(flags.secrets_of(parsed("--header", "Authorization: Bearer sk-hdr"), {}))
    assert given("sk-hdr") == "***"


@pytest.mark.parametrize("key", ["sk-a\nsk-b", "sk a", "sk-\u00e9", "sk\x00", "a\rb"])
def test_a_key_that_no_header_can_carry_is_refused_in_words(key: str) -> None:
    with pytest.raises(UsageError, match=r"the key of OPENAI_API_KEY has .* inside; give the key alone") as caught:
        flags.http_of(parsed(), {"OPENAI_API_KEY": key})
    assert key not in str(caught.value)


def test_spaces_and_line_ends_around_a_key_are_no_part_of_it() -> None:
    http = flags.http_of(parsed(), {"OPENAI_API_KEY": " sk-abc\r\n"})
    assert http.headers == (("Authorization", "Bearer sk-abc"),)
    assert "sk-abc" in flags.secrets_of(parsed(), {"OPENAI_API_KEY": " sk-abc\r\n"})


def written(folder: Path) -> dict[str, str]:
    """The text of each file below a folder."""
    return {path.name: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


async def test_no_file_and_no_line_of_a_run_has_the_urls_password(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            given = re.search(rb"(?i)authorization: .*", await read_request(reader))
            writer.write(whole("401 No", given.group() if given else b""))

    async with serving(handle) as url:
        target = url.replace("http://", "http://bob:pw-1234@")
        words = ("--base-url", target, "--model", "m1", "--num-prompts", "2", "--quiet")
        code, said, _ = await loadgen(tmp_path, "run", *words, "--engine-metrics", "off")
        assert code == 1, said
        refused, more, _ = await loadgen(tmp_path, "run", "--base-url", target)
    assert refused == 2
    assert f"http://***@{url.removeprefix('http://')}" in more
    files = written(tmp_path)
    assert {"run.json", "result.json", "report.md", "report.html", "events.jsonl"} <= {*files}
    texts = [said, more, *files.values()]
    for secret in ("pw-1234", "bob", "Ym9iOnB3LTEyMzQ="):
        assert [text for text in texts if secret in text] == []


def test_a_config_is_json_whatever_was_given() -> None:
    config = flags.config_of(parsed("--request-rate", "inf", "--metadata", "a=b"))
    assert json.loads(json.dumps(config))["request_rate"] == "inf"
    assert config["metadata"] == {"a": "b"}

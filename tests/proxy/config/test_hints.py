"""What an unknown setting may have meant: by the words of vLLM and of other gateways, else by spelling."""

from __future__ import annotations

import pytest

from proxy.config import hints
from proxy.config.settings import options
from tests.proxy.config.test_loader import loaded, wrong

NAMES = {option.name for option in options()}


def test_each_hint_names_settings_that_exist_and_is_for_words_that_do_not() -> None:
    known = {option.flag.removeprefix("--") for option in options()} | {name.replace("_", "-") for name in NAMES}
    meanings = hints._MEANINGS
    words = [word for group in meanings for word in group]
    assert len(words) == len(set(words)) == len(hints._BY_WORD)
    assert known.isdisjoint(words)
    assert all(word == word.lower() and "_" not in word for word in words)
    meant = {name for meaning in meanings.values() if isinstance(meaning, tuple) for name in meaning}
    assert meant <= NAMES


@pytest.mark.parametrize(
    ("flag", "end"),
    [
        ("--upstream", "; did you mean --backend?"),
        ("--api-key", "; did you mean --api-keys-file or --backend-api-key-file?"),
        ("--bind", "; did you mean --host or --port?"),
        ("--max-concurrency", "; did you mean --max-inflight?"),
        ("--cache-ttl", "; did you mean --cache-ttl-seconds or --share?"),
        ("--ssl-certfile", "; did you mean --tls-cert or --tls-key?"),
        ("--num-retries", "; did you mean --retries or --retry-on?"),
        (
            "--timeout",
            "; did you mean --total-timeout, --first-token-timeout, --queue-timeout or --connect-timeout?",
        ),
        ("--num-workers", "; did you mean --workers?"),
        ("--CORS", "; did you mean --cors-origins?"),
        ("--allowed-headers", "; cors_origins allows all methods and headers, and never credentials (cookies)"),
        ("--model", "; models are the engines' own: the gateway asks every --backend which it serves"),
        ("--tensor_parallel_size", "; it is a setting of the engine: give it to `vllm serve`"),
        ("--prot", "; did you mean --port?"),
        ("--xyzzy", ""),
    ],
)
def test_an_unknown_flag_is_answered_by_what_it_may_mean(flag: str, end: str) -> None:
    (line,) = wrong([flag, "1"])
    assert line.startswith("unknown flag ")
    assert line.partition(";")[1] + line.partition(";")[2] == end


def test_the_environment_and_the_file_are_answered_in_their_own_names() -> None:
    assert loaded(environ={"GATEWAY_UPSTREAMS": "x", "GATEWAY_RPM": "1"}).warnings == (
        "environment GATEWAY_RPM: ignored: no such setting; did you mean GATEWAY_RATE_LIMIT_RPS, "
        "GATEWAY_RATE_LIMIT_TOKENS_PER_MINUTE or GATEWAY_RATE_LIMIT_STREAMS?",
        "environment GATEWAY_UPSTREAMS: ignored: no such setting; did you mean GATEWAY_BACKENDS?",
    )
    assert wrong(file="upstreams = 1\nprocesses = 8") == [
        "file x.toml: unknown key 'upstreams'; did you mean backends?",
        "file x.toml: unknown key 'processes'; did you mean workers?",
    ]
    assert wrong(file="GATEWAY_PORT = 1\nPORT = 1") == [
        "file x.toml: unknown key 'GATEWAY_PORT'; did you mean port?",
        "file x.toml: unknown key 'PORT'; did you mean port?",
    ]
    assert wrong(["--PORT", "1"]) == ["unknown flag *** (6 characters); did you mean --port?"]


@pytest.mark.parametrize(
    ("variable", "flag", "key"),
    [
        ("GATEWAY_BACKENDS", "--backend", "backends"),
        ("GATEWAY_MODELS", "--model-alias", "models"),
        ("GATEWAY_MODEL_FALLBACKS", "--model-fallback", "model_fallbacks"),
        ("GATEWAY_REDIS_URL", "--redis", "redis"),
    ],
)
def test_the_name_of_another_kind_is_answered_by_the_name_of_this_kind(variable: str, flag: str, key: str) -> None:
    as_variable = "GATEWAY_" + flag.removeprefix("--").replace("-", "_").upper()
    if as_variable != "GATEWAY_REDIS":  # which is a variable too
        assert loaded(environ={as_variable: "a=b"}).warnings == (
            f"environment {as_variable}: ignored: no such setting; did you mean {variable}?",
        )
        assert wrong(file=f"{as_variable.removeprefix('GATEWAY_').lower()} = 1") == [
            f"file x.toml: unknown key '{as_variable.removeprefix('GATEWAY_').lower()}'; did you mean {key}?"
        ]
    as_flag = "--" + variable.removeprefix("GATEWAY_").replace("_", "-").lower()
    (line,) = wrong([as_flag, "1"])
    assert line.endswith(f"; did you mean {flag}?")


def test_a_section_is_answered_by_what_it_would_hold_and_that_there_are_none() -> None:
    none = "settings are keys of the file itself, without sections"
    assert wrong(file="[limits]\nrps = 1\n[gateway]\nport = 1\n") == [
        "file x.toml: unknown section [limits]; did you mean rate_limit_rps, rate_limit_tokens_per_minute or "
        f"rate_limit_streams?; {none}",
        f"file x.toml: unknown section [gateway]; {none}: write port without this line",
    ]


@pytest.mark.parametrize("name", ["GATEWAY_FOO", "GATEWAY_A", "GATEWAY_BAR"])
def test_what_all_variables_begin_with_makes_none_alike(name: str) -> None:
    assert loaded(environ={name: "1"}).warnings == (f"environment {name}: ignored: no such setting",)


def test_a_misspelt_variable_is_answered_by_the_one_that_was_meant() -> None:
    assert loaded(environ={"GATEWAY_API_KEY_FILE": "x"}).warnings == (
        "environment GATEWAY_API_KEY_FILE: ignored: no such setting; did you mean GATEWAY_API_KEYS_FILE?",
    )


def test_a_section_s_name_is_bounded_and_shows_no_secret() -> None:
    (line,) = wrong(file=f'["redis://u:hunter2@h/{"x" * 500}"]\n')
    assert "hunter2" not in line
    assert len(line) < 400

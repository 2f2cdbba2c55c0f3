"""The declaration of the settings and how one value is read."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import __version__
from proxy.config.settings import GROUPS, MIB, Option, Settings, options, settings_table
from proxy.config.values import backend_urls, mask_url, namespace, redis_url, size, size_text, whole_or

OPTIONS = {option.name: option for option in options()}


def test_every_field_but_the_last_two_is_a_setting() -> None:
    assert [*OPTIONS, "warnings", "config"] == [f.name for f in dataclasses.fields(Settings)]


@pytest.mark.parametrize("option", options(), ids=lambda option: option.name)
def test_a_setting_has_a_flag_an_environment_twin_and_one_sentence(option: Option) -> None:
    assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", option.flag)
    assert all(re.fullmatch(r"GATEWAY_[A-Z]+(_[A-Z]+)*", env) for env in option.env)
    assert re.fullmatch(r"[A-Z][^\n]*[^.]\.", option.help)


def test_flags_and_twins_are_named_alike_but_for_those_that_are_told() -> None:
    odd = [
        o.name
        for o in options()
        if (o.flag, o.env) != ("--" + o.name.replace("_", "-"), ("GATEWAY_" + o.name.upper(),))
    ]
    assert odd == ["backends", "models", "model_fallbacks", "redis"]


@pytest.mark.parametrize("option", options(), ids=lambda option: option.name)
def test_a_default_is_one_that_the_reader_would_take(option: Option) -> None:
    if option.name != "max_inflight":  # `auto` is 0 here; from a user, 0 may mean anything, and is an error
        assert option.read(option.default) == option.default
    if option.default != ():
        assert option.read(option.shown_default) == option.default


def test_settings_are_frozen_and_their_repr_holds_no_secret() -> None:
    settings = Settings(redis="redis://user:hunter2@host")
    assert "hunter2" not in repr(settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


def test_the_tables_have_one_row_a_setting_and_every_row_the_same_columns() -> None:
    lines = settings_table().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")} == {6}
    assert all(option.flag in row and option.env[0] in row for option, row in zip(options(), rows, strict=True))


def test_each_group_has_a_table() -> None:
    lines = settings_table().splitlines()
    groups = [group for group, _ in GROUPS]
    assert [line.removeprefix("### ") for line in lines if line.startswith("#")] == groups
    assert list(dict.fromkeys(option.group for option in options())) == groups
    assert [OPTIONS[first].group for _, first in GROUPS] == groups
    assert lines.count("|---|---|---|---|---|") == len(groups)


def test_the_version_is_that_of_the_package() -> None:
    config = (Path(__file__).parents[3] / "setup.cfg").read_text()
    assert "\nversion = attr: proxy.__version__\n" in config
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


WRONG: list[tuple[str, Any, str]] = [
    ("port", "http", "a whole number from 0 to 65535"),
    ("port", 65536, "from 0 to 65535"),
    ("port", "-1", "from 0 to 65535"),
    ("port", True, "a whole number"),
    ("port", 80.0, "a whole number"),
    ("port", "٨٠", "a whole number"),
    ("port", "9" * 5000, "a whole number"),
    ("queue_limit", 0, "at least 1"),
    ("total_timeout", "soon", "a number"),
    ("total_timeout", "nan", "a number"),
    ("total_timeout", "inf", "a number"),
    ("total_timeout", 10**400, "a number"),
    ("total_timeout", [1], "a number"),
    ("total_timeout", -1, "at least 0"),
    ("connect_timeout", 0, "at least 0.01"),
    ("max_body_bytes", "16 furlongs", "64KiB"),
    ("max_body_bytes", "1023", "from 1KiB"),
    ("max_body_bytes", 2.5, "64KiB"),
    ("max_body_bytes", True, "64KiB"),
    ("max_body_bytes", "9" * 18, "to 1024TiB"),
    ("embed_stub", "maybe", "on or off"),
    ("embed_stub", 2, "on or off"),
    ("share", "some", "auto, all, off"),
    ("share", ["auto"], "auto, all, off"),
    ("routing", "random", "power-of-two, least-outstanding, round-robin, hash, prefix"),
    ("retry_on", "500", "connect, reset, truncated, malformed, 429, 502, 503, 504, first-token, or none"),
    ("retry_on", ["connect", 5.0], "or none"),
    ("retry_budget", 101, "from 0 to 100"),
    ("host", "", "an address"),
    ("host", "http://0.0.0.0", "an address"),
    ("host", "0.0.0.0:80", "an address"),
    ("redis", "on", "redis://"),
    ("redis", "http://h", "redis://"),
    ("redis", "redis://", "redis://"),
    ("redis", "unix://", "unix:///"),
    ("redis", "redis://h:99999", "redis://"),
    ("redis", "redis://h/name", "database number"),
    ("redis", False, "redis://"),
    ("backends", "127.0.0.1:8000", "http://"),
    ("backends", "ftp://h", "http://"),
    ("backends", "http://", "http://"),
    ("backends", "http://h:0", "port 0"),
    ("backends", "http://h:1x", "http://"),
    ("backends", "http://[::1", "http://"),
    ("backends", "http://h/?a=b", "without ?"),
    ("backends", "http://h/#a", "without ?"),
    ("backends", "http://ü", "http://"),
    ("backends", "http://user@h", "user or password"),
    ("backends", "http://h/v1/chat/completions", "must be the engine's address alone, without /chat/completions"),
    ("backends", ["http://h", "http://H:80/v1/"], "http://h twice"),
    ("backends", 8000, "http://"),
    ("backends", "unix:", "full path"),
    ("backends", "unix://run/vllm.sock", "full path"),
    ("backends", "unix:run/vllm.sock", "full path"),
    ("backends", "unix:///", "full path"),
    ("backends", "unix:///run/", "full path"),
    ("backends", "unix:///run/\x01", "full path"),
    ("backends", "unix:///a?b", "full path"),
    ("backends", "http+unix:///run/vllm.sock", "full path"),
    ("backends", "http+unix://%2Frun%2F%ff.sock", "full path"),
    ("backends", "http+unix://%2Fs/v1/models", "without /models"),
    ("backends", "unix:///" + "x" * 107, "at most 107 bytes"),
    ("backends", ["unix:/s", "http+unix://%2Fs/v1"], "unix:///s twice"),
    ("backend_ca", "https://ca", "path of a file"),
    ("backend_key", 5, "path of a file"),
    ("backends", [8000], "http://"),
    ("backend_api_key", "two words", "printable ASCII"),
    ("backend_api_key", "a\nb", "printable ASCII"),
    ("backend_api_key", 7, "printable ASCII"),
    ("trusted_proxies", "10.1.2.3/8", "no host bits"),
    ("trusted_proxies", "proxy", "addresses or networks"),
    ("trusted_proxies", 8, "addresses or networks"),
    ("max_tokens_cap", "-1", "at least 0"),
    ("listen_unix_mode", "0777", "0600, 0660, 0666"),
]


@pytest.mark.parametrize(("name", "raw", "right"), WRONG, ids=lambda value: repr(value)[:30])
def test_a_wrong_value_is_told_what_would_be_right(name: str, raw: Any, right: str) -> None:
    with pytest.raises(ValueError, match=re.escape(right)):
        OPTIONS[name].read(raw)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("HTTP://Host:80/", "http://host"),
        ("https://host:443/v1", "https://host"),
        ("https://host:80/v1/", "https://host:80"),
        ("http://host/base/v1//", "http://host/base"),
        ("http://host/v1/base", "http://host/v1/base"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("DNS+HTTP://vLLM.Svc:80/v1", "dns+http://vllm.svc"),
        ("dns+http://vllm.svc:8000/base/", "dns+http://vllm.svc:8000/base"),
        ("dns+https://_https._tcp.vllm.svc", "dns+https://_https._tcp.vllm.svc"),
        ("unix:/run/vllm.sock", "unix:///run/vllm.sock"),
        ("unix:///run/vllm.sock", "unix:///run/vllm.sock"),
        ("UNIX:///run/VLLM.sock", "unix:///run/VLLM.sock"),
        ("http+unix://%2Frun%2Fvllm.sock", "unix:///run/vllm.sock"),
        ("http+unix://%2Frun%2Fvllm.sock/v1/", "unix:///run/vllm.sock"),
        ("http+unix://%2frun%2fvllm.sock/base/v1", "http+unix://%2Frun%2Fvllm.sock/base"),
        ("http+unix://%2Frun%2Fa%20b%2C.sock", "http+unix://%2Frun%2Fa%20b%2C.sock"),
        ("unix:///run/\u00fc%41", "http+unix://%2Frun%2F%C3%BC%2541"),
    ],
)
def test_an_engine_is_always_written_the_same(given: str, kept: str) -> None:
    assert backend_urls(given) == (kept,)
    assert backend_urls(kept) == (kept,)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "rediss://user:p%40ss@h:6380/3",
        "unix:///run/redis.sock",
        "redis://h?db=1",
        "redis://[::1]:1/0",
        "redis+cluster://h",
        "rediss+cluster://u:p,w@a:7000,b,[::1]:7001/0?ssl_ca_certs=ca.pem",
        "redis+sentinel://a,b:26380/my-master.1",
        "rediss+sentinel://:p@a/m/3?sentinel_password=q",
    ],
)
def test_a_redis_url_is_kept_as_it_is(url: str) -> None:
    assert redis_url(url) == url


@given(st.integers(1024, 2**50))
def test_a_size_as_shown_reads_as_the_same_size(count: int) -> None:
    assert size(1024)(size_text(count)) == count == size(1024)(f" {count} ")


def test_sizes_know_tens_and_twos() -> None:
    assert [size(0)(text) for text in ("1kb", "1 KiB", "2MB", "16MiB", "1GiB", "0")] == [
        1000,
        1024,
        2_000_000,
        16 * MIB,
        2**30,
        0,
    ]


JUNK = st.one_of(
    st.text(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.lists(st.text(max_size=5)),
    st.from_regex(r"(https?|redis|unix)://\S*"),
)


@given(st.sampled_from(options()), JUNK)
def test_a_reader_raises_nothing_but_value_error_and_reads_its_own_values_back(option: Option, raw: Any) -> None:
    try:
        value = option.read(raw)
    except ValueError as e:
        told = str(e)
    else:
        assert type(value) is type(option.default)
        assert option.read(value) == value
        return
    assert told.startswith("must ")


PASSWORD = st.text("abcdef/:@,? %#&", min_size=1).map(lambda text: f"Hunter2{text}Hunter2")


@given(
    PASSWORD,
    st.sampled_from(["redis://user:{}@host:1/0", "redis://{}@host", "user:{}@host", "http://a, http://u:{}@b"]),
)
def test_no_part_of_a_password_survives_masking(password: str, form: str) -> None:
    assert "Hunter2" not in mask_url(form.format(password))


def test_masking_leaves_the_rest_to_be_read() -> None:
    assert mask_url("redis://u:p@host:6379/0?ssl=1") == "redis://***@host:6379/0?ssl=1"
    assert mask_url("redis://host?db=1&password=x%20y&protocol=3") == "redis://host?db=1&password=***&protocol=3"
    assert mask_url("http://127.0.0.1:8000") == "http://127.0.0.1:8000"


def test_toml_is_what_the_readers_are_made_for() -> None:
    table = tomllib.loads(
        'port = 1\ntotal_timeout = 1\nembed_stub = true\nmax_body_bytes = "1MiB"\nbackends = ["http://h"]'
    )
    assert [OPTIONS[key].read(raw) for key, raw in table.items()] == [1, 1.0, True, MIB, ("http://h",)]


def test_a_number_or_a_word_says_both_where_it_is_neither() -> None:
    read = whole_or("auto", 1, 9)
    assert [read(raw) for raw in ("auto", " AUTO ", "1", 9)] == [0, 0, 1, 9]
    for raw in ("ten", 0, 10, True):
        with pytest.raises(ValueError, match=r"^must be auto, or .*9"):
            read(raw)


@pytest.mark.parametrize("raw", [5, None, True, "", "a b", "x" * 65, "é"])
def test_a_namespace_is_a_short_word(raw: object) -> None:
    assert namespace(f" {'x' * 64} ") == "x" * 64
    with pytest.raises(ValueError, match="1 to 64 letters"):
        namespace(raw)

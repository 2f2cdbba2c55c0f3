"""Settings that are printed read back as the same settings, whatever they are and wherever they came from; secrets
are left out, and the file says so."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.conflicts import _AT_MOST
from proxy.config.loader import load
from proxy.config.settings import MIB, Option, Settings, options
from proxy.config.toml_text import settings_as_toml, toml_string
from tests.kit.setting_texts import TYPED

OPTIONS = {option.name: option for option in options()}
URLS = ["http://a", "https://b/base", "unix:///run/v.sock", "unix:///run/a b,\u00fc.sock", "http://[::1]:8000"]
REDIS = ["auto", "off", "redis://h:6379/0", "rediss://h/1?ssl_ca_certs=/ca.pem", "unix:///run/redis.sock"]
SECRET = ["redis://u:hunter2@h:1/0", "rediss://h?ssl_password=hunter2", "redis://hunter2@h"]
CONTROL = st.text("\"\\'\n\r\t\x01\x7f\x85\u202e\u00fc\U0001f600= #[]", min_size=1, max_size=12)
PATHS = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), CONTROL, st.just("none"))
NUMBERS = ["0", "auto", "1", "4", "64", "4096", "1e6", "1_000_000", "0.1", "0.25", "1.5", "20", "1e17", "3e-7"]
UNITS = ["", "s", "ms", "m", "h", "d", "KiB", "MiB", "GiB", "KB", "GB", "TiB", "B"]


def texts(option: Option) -> st.SearchStrategy[Any]:
    """Texts that may be legal values of the setting."""
    if option.metavar == "URL":
        if option.repeats:
            return st.lists(st.sampled_from(URLS), unique=True, max_size=4).map(",".join).filter(bool)
        return st.sampled_from(REDIS)
    if option.metavar == "FILE":
        return PATHS
    if option.metavar in ("CIDR", "HOST"):
        known = ["unix", "10.0.0.0/8", "::1", "*", "*.example.com", "[::1]", "a.example"]
        return st.lists(st.sampled_from(known), min_size=1, max_size=3).map(" ".join)
    if isinstance(option.default, int | float) and not option.is_switch:
        quantities = [number + unit for number in NUMBERS for unit in UNITS]
        typed = st.sampled_from([text for text in quantities if read(option, text) is not None])
        return st.one_of(typed, st.floats(0.1, 99).map(repr)) if isinstance(option.default, float) else typed
    if "|" in option.metavar:
        return st.sampled_from(option.metavar.split("|"))
    return st.just(TYPED[option.name])


def read(option: Option, text: str) -> Any:
    """The value, or None where the text is not legal."""
    try:
        return option.read(text)
    except ValueError:
        return None


def legal(option: Option) -> st.SearchStrategy[str]:
    return texts(option).filter(lambda text: bool(text.strip()) and read(option, text) is not None)


LEGAL = {name: legal(option) for name, option in OPTIONS.items()}


@st.composite
def given_settings(draw: st.DrawFn) -> tuple[list[str], dict[str, str], str]:
    """Flags, environment and file of legal settings that are compatible."""
    names = draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=12))
    chosen = {name: draw(LEGAL[name]) for name in sorted(names - {"backend_api_key"})}
    if "max_frame_bytes" in chosen:  # bounded by an answer, and that by the budget
        chosen.pop("memory_budget", None)
    for inner, outer, _ in _AT_MOST:  # a given value over its bound is an error
        chosen.pop(outer if inner in chosen else "", None)
        if inner in chosen:
            bound = OPTIONS[outer].default
            if bound and read(OPTIONS[inner], chosen[inner]) > bound:
                del chosen[inner]
    flags: list[str] = []
    environ: dict[str, str] = {}
    file = ""
    for name, text in chosen.items():
        option = OPTIONS[name]
        source = draw(st.sampled_from(["flag", "environment", "file"]))
        if source == "flag" and option.is_switch:
            flags.append(option.flag if text == "on" else option.flag.replace("--", "--no-", 1))
        elif source == "flag":
            flags.append(f"{option.flag}={text}")
        elif source == "environment":
            environ[option.env[0]] = text
        else:
            file += f"{name} = {toml_string(text)}\n"
    return flags, environ, file


def reread(text: str, environ: dict[str, str] | None = None) -> Settings:
    return load(["--config", "printed"], environ or {}, lambda path: text)


@given(given_settings())
def test_settings_of_any_source_read_back_as_they_were(sources: tuple[list[str], dict[str, str], str]) -> None:
    flags, environ, file = sources
    loaded = load(["--config", "x", *flags], environ, lambda path: file)
    printed = settings_as_toml(loaded)
    assert reread(printed) == loaded
    assert settings_as_toml(reread(printed)) == printed
    assert printed.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"backend_api_key"}))
@settings(max_examples=15)
@given(data=st.data())
def test_each_setting_reads_back_as_it_was(name: str, data: st.DataObject) -> None:
    value = OPTIONS[name].read(data.draw(LEGAL[name]))
    table = tomllib.loads(settings_as_toml(Settings(**{name: value})))
    assert OPTIONS[name].read(table[name]) == value


def test_what_people_type_is_printed_as_they_type_it() -> None:
    table = tomllib.loads(settings_as_toml(Settings()))
    printed = {
        name: table[name] for name in ("queue_timeout", "retry_backoff_ms", "max_body_bytes", "port", "page")
    }
    assert printed == {
        "queue_timeout": "300s",
        "retry_backoff_ms": "50ms",
        "max_body_bytes": "16MiB",
        "port": 8080,
        "page": True,
    }
    off = settings_as_toml(Settings(max_inflight=0, memory_budget=0, queue_timeout=0.0, redis_memory_mb=1024))
    for line in (
        'max_inflight = "auto"',
        'memory_budget = "auto"',
        "queue_timeout = 0",
        'redis_memory_mb = "1GiB"',
    ):
        assert f"\n{line}\n" in off
    assert reread(settings_as_toml(Settings(max_inflight=0))).max_inflight == 0


def test_a_default_below_what_may_be_set_is_left_out() -> None:
    """Another setting has lowered it, and does so again."""
    loaded = load(["--total-timeout", "1ms", "--queue-timeout", "50ms"], {})
    assert (loaded.connect_timeout, loaded.queue_patience) == (0.001, 0.05)
    printed = settings_as_toml(loaded)
    assert '\n# connect_timeout = "0.001s": its default, lowered to another setting\n' in printed
    assert reread(printed) == loaded
    assert "lowered" not in settings_as_toml(load(["--total-timeout", "2"], {}))


def test_every_setting_is_printed_under_its_group() -> None:
    lines = settings_as_toml(Settings(max_prompt_chars=5)).splitlines()
    names = [line.partition(" = ")[0] for line in lines if " = " in line]
    assert names == list(OPTIONS)
    assert "max_prompt_chars = 5" in lines
    assert lines[1:4] == ["", "# Listening", 'host = "127.0.0.1"']


@pytest.mark.parametrize("url", SECRET)
@pytest.mark.parametrize("key", ["", "hunter2-key"])
def test_secrets_are_left_out_and_the_file_says_how_to_give_them(url: str, key: str) -> None:
    whole = Settings(redis=url, backend_api_key=key, max_prompt_chars=5)
    printed = settings_as_toml(whole)
    assert "hunter2" not in printed
    names = "backend_api_key, redis" if key else "redis"
    assert printed.splitlines()[0] == (
        f"# All settings, as a file for --config. Secrets are left out and must be given as well: {names}."
    )
    assert 'redis = "redis' in printed  # in a comment, without the secret
    assert "# redis = " in printed
    assert ": a secret, left out; set GATEWAY_REDIS_URL\n" in printed
    assert ("# backend_api_key = ***: a secret, left out; set GATEWAY_BACKEND_API_KEY\n" in printed) is bool(key)
    without = reread(printed)
    assert (without.redis, without.backend_api_key, without.max_prompt_chars) == ("auto", "", 5)
    secrets = {"GATEWAY_REDIS_URL": url, "GATEWAY_BACKEND_API_KEY": key}
    assert reread(printed, secrets) == whole


def test_without_secrets_the_file_says_so() -> None:
    first = settings_as_toml(Settings(redis="redis://h:6379/0")).splitlines()[0]
    assert first == "# All settings, as a file for --config. It holds no secret."


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_string_is_itself_in_toml_and_controls_no_terminal(text: str) -> None:
    written = toml_string(text)
    assert tomllib.loads(f"x = {written}") == {"x": text}
    assert written.isprintable()


def test_a_path_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^must be a path in UTF-8, or none$"):
        OPTIONS["deny_file"].read("/etc/\udcff")


def test_sizes_keep_each_byte() -> None:
    for size in (16 * MIB + 1, 17 * MIB, 10**9):
        settings = Settings(memory_budget=size, max_flight_bytes=MIB, max_frame_bytes=MIB)
        assert reread(settings_as_toml(settings)).memory_budget == size

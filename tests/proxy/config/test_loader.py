"""Where settings come from: flags, environment, file; and how all that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.conflicts import conflicts, own_address
from proxy.config.loader import load
from proxy.config.settings import MIB, Option, Settings, options
from proxy.errors import SettingsError
from tests.kit.setting_texts import TYPED

OTHER = {"port": "9", "share": "off", "embed_stub": "off", "max_batch": "2", "backends": "http://c"}
EACH = pytest.mark.parametrize("option", options(), ids=lambda option: option.name)


def by_flag(option: Option, text: str) -> list[str]:
    if option.is_switch:
        return [option.flag if text == "on" else option.flag.replace("--", "--no-", 1)]
    if option.repeats:
        return [word for url in text.split() for word in (option.flag, url)]
    return [option.flag, text]


def by_file(option: Option, text: str) -> str:
    """The way a person would write it in TOML: numbers and booleans bare, a list as a list."""
    value: Any = text
    if option.is_switch:
        value = text == "on"
    elif option.repeats:
        value = text.split()
    elif isinstance(option.default, int | float) and text.replace(".", "").isdigit():
        value = float(text) if "." in text else int(text)
    return f"{option.name} = {msgspec.json.encode(value).decode()}\n"


def loaded(argv: Sequence[str] = (), environ: dict[str, str] | None = None, file: str | None = None) -> Settings:
    given = dict(environ or {})
    if file is not None:
        given["GATEWAY_CONFIG"] = "x.toml"
    return load(argv, given, {"x.toml": file or ""}.__getitem__)


def wrong(argv: Sequence[str] = (), environ: dict[str, str] | None = None, file: str | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        loaded(argv, environ, file)
    return str(caught.value).splitlines()


def test_nothing_given_is_the_defaults() -> None:
    assert loaded() == Settings()


def test_the_table_of_typed_values_holds_every_setting() -> None:
    assert list(TYPED) == [option.name for option in options()]


@EACH
def test_flag_environment_and_file_give_the_same_settings(option: Option) -> None:
    text = TYPED[option.name]
    settings = loaded(by_flag(option, text))
    assert getattr(settings, option.name) != option.default
    assert settings == loaded(file=by_file(option, text))
    assert all(settings == loaded(environ={env: text}) for env in option.env)


def test_all_settings_at_once_from_each_source_are_the_same() -> None:
    flags = [word for option in options() for word in by_flag(option, TYPED[option.name])]
    file = "".join(by_file(option, TYPED[option.name]) for option in options())
    assert loaded(flags) == loaded(environ={o.env[0]: TYPED[o.name] for o in options()}) == loaded(file=file)


@given(st.sets(st.sampled_from(["flag", "environment", "file"])), st.sampled_from(sorted(OTHER)))
def test_flag_wins_over_environment_over_file_over_default(sources: set[str], name: str) -> None:
    option = next(option for option in options() if option.name == name)
    ranked = [source for source in ("flag", "environment", "file") if source in sources]
    text = {source: OTHER[name] if source == ranked[0] else TYPED[name] for source in ranked}
    settings = loaded(
        by_flag(option, text["flag"]) if "flag" in text else [],
        {option.env[0]: text["environment"]} if "environment" in text else {},
        by_file(option, text["file"]) if "file" in text else None,
    )
    assert getattr(settings, name) == (option.read(OTHER[name]) if ranked else option.default)


def test_the_config_flag_wins_over_its_twin() -> None:
    files = {"a.toml": "port = 1", "b.toml": "port = 2"}
    assert load(["--config", "b.toml"], {"GATEWAY_CONFIG": "a.toml"}, files.__getitem__).port == 2


def test_the_file_is_read_from_disk_unless_told_otherwise(tmp_path: Any) -> None:
    (tmp_path / "x.toml").write_text("port = 1")
    assert load(["--config", str(tmp_path / "x.toml")], {}).port == 1
    (tmp_path / "bom.toml").write_text("\ufeffport = 2", "utf-8")  # as some editors begin it
    assert load(["--config", str(tmp_path / "bom.toml")], {}).port == 2


def test_the_redis_url_wins_over_its_short_twin() -> None:
    assert loaded(environ={"GATEWAY_REDIS": "off", "GATEWAY_REDIS_URL": "redis://h"}).redis == "redis://h"


def test_an_empty_variable_is_none() -> None:
    assert loaded(environ={"GATEWAY_PORT": "", "GATEWAY_BACKENDS": " ", "GATEWAY_CONFIG": ""}) == Settings()


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_switches_read_many_words_for_on(text: str) -> None:
    assert loaded(environ={"GATEWAY_EMBED_STUB": text}).embed_stub is True


def test_all_that_is_wrong_is_told_at_once_with_its_source() -> None:
    lines = wrong(
        ["--port", "http", "--prot", "80", "serve"],
        {"GATEWAY_MAX_BATCH": "0", "GATEWAY_PORT": "x"},
        'prot = 1\nqueue_limit = "many"\n',
    )
    assert lines == [
        "unknown flag '--prot'; did you mean --port?",
        "unexpected argument 'serve': settings are given as --flag VALUE",
        "file x.toml: unknown key 'prot'; did you mean port?",
        "file x.toml: queue_limit = 'many': must be a whole number of at least 1, such as 1024 or 1e6",
        "environment GATEWAY_PORT = 'x': must be a whole number from 0 to 65535, such as 8080",
        "environment GATEWAY_MAX_BATCH = '0': must be from 1 to 4096",
        "flag --port = 'http': must be a whole number from 0 to 65535, such as 8080",
    ]


def test_a_flag_without_its_value_joins_the_rest() -> None:
    assert wrong(["--port"], {"GATEWAY_MAX_BATCH": "0"}) == [
        "flag --port: needs a value",
        "environment GATEWAY_MAX_BATCH = '0': must be from 1 to 4096",
    ]


def test_a_flag_is_not_guessed_from_its_beginning() -> None:
    assert wrong(["--por", "80"]) == ["unknown flag '--por'; did you mean --port?"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(2, "No such file or directory"), "No such file"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "not a TOML file"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(error: Exception, told: str) -> None:
    def read_file(path: str) -> str:
        raise error

    with pytest.raises(SettingsError, match=told):
        load(["--config", "x.toml"], {}, read_file)


@pytest.mark.parametrize("text", ["port: 80", "x = " + "[" * 3000 + "]" * 3000])
def test_a_file_that_is_not_toml_is_told(text: str) -> None:
    assert wrong(file=text)[0].startswith("file x.toml: not a TOML file: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "queue_timeout = 10s",
            'line 1: queue_timeout: text, and a number with a unit, are in quotes: queue_timeout = "…"',
        ),
        (
            "port = 1\r\nmax_body_bytes = 64MiB\r\n",
            "line 2: max_body_bytes: text, and a number with a unit, are in",
        ),
        (
            "max_inflight = auto",
            "line 1: max_inflight: text, and a number with a unit, are in quotes: max_inflight = ",
        ),
        ("host = 0.0.0.0", "line 1: host: text, and a number with a unit, are in quotes: host = "),
        ("port: 8080", "line 1: port: a setting is written port = VALUE"),
        ("port = 1\nhost = 'a'\nport = 2", "line 3: port: is given twice"),
        ('host = "a', "line 1: host: Unterminated string"),
        ("backends = [http://a]", 'line 1: backends: Invalid value; a list is written backends = ["…", "…"]'),
        ("backends = ['a' 'b']", 'line 1: backends: Unclosed array; a list is written backends = ["…", "…"]'),
        ("host = 'a' 'b'", "line 1: host: Expected newline or end of document after a statement"),
        ("port = ", "line 1: port: Invalid value"),
        ("s3cret = s3cret", "Invalid value (at line 1, column 10)"),
        ("models = {a = ", "line 1: models: Invalid value"),
        ('backends = [\n"http://a",\n', "Invalid value (at end of document)"),
        ("port = 1\n= 2\n", "Invalid statement (at line 2, column 1)"),
        ("x = " + "[" * 3000 + "]" * 3000, "it is nested too deeply"),
    ],
)
def test_a_file_that_is_not_toml_is_told_by_the_line_and_the_setting(text: str, told: str) -> None:
    (line,) = wrong(file=text)
    assert line.startswith(f"file x.toml: not a TOML file: {told}")


@pytest.mark.parametrize("table", ["models", "model_fallbacks"])
def test_a_setting_below_a_table_of_names_is_no_name(table: str) -> None:
    text = f'[{table}]\na = "m1"\napi_keys_file = "keys.toml"\nport = 8080\n'
    assert wrong(file=text) == [
        f"file x.toml: api_keys_file, port: inside the table {table}; write settings above the line [{table}]"
    ]
    assert loaded(file=f'port = 1\n[{table}]\na = "m1"\n').port == 1


def test_a_file_in_another_encoding_or_without_an_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"port = 1\r\n# caf\xe9\r\n")
    with pytest.raises(SettingsError) as caught:
        load(["--config", str(path)], {})
    assert str(caught.value) == f"file {path}: not a TOML file: is not UTF-8 (line 2, byte 15)"
    with pytest.raises(SettingsError, match="is larger than 16777216 bytes"):
        load(["--config", "/dev/zero"], {})


def test_a_file_with_lines_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b'\xef\xbb\xbfport = 1\r\nqueue_timeout = "10s"\r\n')
    settings = load(["--config", str(tmp_path / "x.toml")], {})
    assert (settings.port, settings.queue_timeout) == (1, 10.0)


@pytest.mark.parametrize(
    ("text", "shown"), [("true", "true"), ("8080.5", "8080.5"), ("1e6", "1000000.0"), ("-1", "-1"), ('"x"', "'x'")]
)
def test_a_wrong_value_of_the_file_is_shown_as_it_is_written_there(text: str, shown: str) -> None:
    assert wrong(file=f"port = {text}")[0].startswith(f"file x.toml: port = {shown}: must be ")


@pytest.mark.parametrize("value", ["on", "maybe", "s3cret"])
@pytest.mark.parametrize("flag", ["--page", "--metrics-key"])
def test_a_word_after_a_switch_is_answered_by_how_to_switch_it_off(flag: str, value: str) -> None:
    off = flag.replace("--", "--no-")
    assert wrong([flag, value, "--port", "1"]) == [f"flag {flag}: takes no value; {off} switches it off"]


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize("flag", ["--api-keys-file", "--tls-cert", "--backend-api-key", "--cache-salt"])
def test_an_empty_flag_does_not_switch_protection_off(flag: str, text: str) -> None:
    assert wrong([flag, text]) == [f"flag {flag} = '': is empty; write none for none"]
    assert loaded([flag, "none"]) == Settings()
    name = flag.removeprefix("--").replace("-", "_")
    assert loaded(file=f'{name} = ""') == Settings()  # as --check-config prints it


def test_a_table_or_a_list_where_a_value_belongs_is_told_without_what_it_holds() -> None:
    assert wrong(file='port = [1, "a"]\n[redis]\npassword = "hunter2"') == [
        "file x.toml: port = [1, 'a']: must be a whole number from 0 to 65535, such as 8080",
        "file x.toml: redis = a table: must be auto, off, or a URL: redis://host:6379/0, rediss://host:6379/0, "
        "unix:///path/to/socket, redis+sentinel://host1,host2/service/0 or redis+cluster://host1,host2",
    ]


@given(
    st.text("abc/:@,? %#&", min_size=1).map(lambda text: f"Hunter2{text}Hunter2"),
    st.sampled_from(options()),
    st.sampled_from(["flag", "environment", "file"]),
)
def test_no_error_and_no_repr_holds_a_password(password: str, option: Option, source: str) -> None:
    url = f"redis://user:{password}@host/0"
    try:
        if source == "flag":
            told = repr(loaded([f"{option.flag}={url}"]))
        elif source == "environment":
            told = repr(loaded(environ={option.env[0]: url}))
        else:
            told = repr(loaded(file=f"{option.name} = {msgspec.json.encode(url).decode()}\n"))
    except SettingsError as e:
        told = str(e)
    assert "Hunter2" not in told


def test_a_value_cannot_forge_a_line_nor_fill_the_screen() -> None:
    lines = wrong(environ={"GATEWAY_PORT": "1\n2" + "x" * 1000})
    assert len(lines) == 1
    assert len(lines[0]) < 300


# -- settings that bound each other -----------------------------------------------------------------


def test_a_given_value_over_its_bound_is_an_error_that_names_both() -> None:
    assert wrong(["--max-frame-bytes", "2MiB"], {"GATEWAY_MAX_FLIGHT_BYTES": "1MiB"}) == [
        "flag --max-frame-bytes = 2MiB: must not be over max_flight_bytes, which is 1MiB "
        "(environment GATEWAY_MAX_FLIGHT_BYTES): an event is part of its answer"
    ]
    assert "(its default)" in wrong(["--token-timeout", "2000"])[0]
    assert "a whole answer is queued" in wrong(["--cache-max-entry-bytes", "1GiB"])[0]


def test_a_default_gives_way_to_a_lower_bound() -> None:
    settings = loaded(["--total-timeout", "2", "--max-flight-bytes", "1MiB"])
    assert (settings.first_token_timeout, settings.token_timeout, settings.connect_timeout) == (2.0, 2.0, 2.0)
    assert settings.max_frame_bytes == MIB


def test_the_largest_answer_fits_into_the_memory_budget() -> None:
    assert loaded(["--memory-budget", "32MiB"]).max_flight_bytes == 32 * MIB
    assert loaded(["--memory-budget", "auto", "--max-flight-bytes", "1GiB"]).max_flight_bytes == 1024 * MIB
    assert wrong(["--memory-budget", "32MiB", "--max-flight-bytes", "33MiB"]) == [
        "flag --max-flight-bytes = 33MiB: must not be over memory_budget, which is 32MiB "
        "(flag --memory-budget): an answer that is held counts in the budget"
    ]
    assert wrong(["--memory-budget", "32MiB", "--max-frame-bytes", "33MiB"]) == [
        "flag --max-frame-bytes = 33MiB: must not be over max_flight_bytes, which is 32MiB "
        "(lowered to memory_budget): an event is part of its answer"
    ]


def test_no_total_timeout_bounds_nothing() -> None:
    assert loaded(["--total-timeout", "0", "--token-timeout", "9999"]).token_timeout == 9999


# -- Kubernetes -------------------------------------------------------------------------------------

SERVICE = {
    "GATEWAY_SERVICE_HOST": "10.0.0.1",
    "GATEWAY_SERVICE_PORT": "8080",
    "GATEWAY_SERVICE_PORT_HTTP": "8080",
    "GATEWAY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "GATEWAY_PORT_8080_TCP_PROTO": "tcp",
    "GATEWAY_PORT_8080_TCP_PORT": "8080",
    "GATEWAY_PORT_8080_TCP_ADDR": "10.0.0.1",
    "GATEWAY_REDIS_SERVICE_HOST": "10.0.0.2",
    "GATEWAY_REDIS_PORT": "tcp://10.0.0.2:6379",
    "GATEWAY_REDIS_PORT_6379_TCP_ADDR": "10.0.0.2",
}


def test_what_kubernetes_puts_into_the_environment_is_ignored() -> None:
    assert loaded(environ=SERVICE) == Settings()


def test_a_service_link_is_no_port_and_says_so() -> None:
    settings = loaded(environ={"GATEWAY_PORT": "tcp://10.0.0.1:8080"})
    assert settings.port == 8080
    assert settings.warnings == ("environment GATEWAY_PORT: ignored: a Kubernetes service link, not a port",)


def test_a_list_in_json_is_answered_by_how_lists_are_written() -> None:
    words = "must be separated by commas, not written as JSON"
    for text in ('["http://a","http://b"]', "[ 'http://u:hunter2@a']"):
        (line,) = wrong(environ={"GATEWAY_BACKENDS": text})
        assert line.startswith("environment GATEWAY_BACKENDS = '")
        assert line.endswith(f": {words}")
        assert "hunter2" not in line
    assert wrong(["--model-alias", '["a=b"]']) == [f"flag --model-alias = ['[\"a=b\"]']: {words}"]
    assert loaded(environ={"GATEWAY_ALLOWED_HOSTS": "[::1], a"}).allowed_hosts == ("::1", "a")


def test_an_unknown_variable_is_a_warning_with_the_nearest_name() -> None:
    assert loaded(environ={"GATEWAY_BACKEND": "http://h", "HOME": "/"}).warnings == (
        "environment GATEWAY_BACKEND: ignored: no such setting; did you mean GATEWAY_BACKENDS?",
    )


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"backends": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080"),
        ({"backends": "http://gpu:8080,http://localhost:8080/v1"}, "http://localhost:8080"),
        ({"host": "0.0.0.0", "port": "80", "backends": "http://[::1]"}, "http://[::1]"),
        ({"host": "10.0.0.1", "port": "443", "backends": "https://10.0.0.1"}, "https://10.0.0.1"),
        ({"listen_unix": "/run/g.sock", "backends": "unix:/run/g.sock"}, "unix:///run/g.sock"),
        ({"host": "10.0.0.1", "backends": "http://127.0.0.1:8080"}, ""),
        ({"backends": "http://gpu:8080,http://127.0.0.1:8000,dns+http://localhost:8080"}, ""),
        ({"listen_unix": "/run/g.sock", "backends": "http://127.0.0.1:8080"}, ""),
        ({"port": "0", "backends": "http://127.0.0.1:8080"}, ""),
    ],
)
def test_a_gateway_is_no_engine_of_its_own(settings: dict[str, str], same: str) -> None:
    environ = {f"GATEWAY_{name.upper()}": value for name, value in settings.items()}
    read = load([], environ)
    assert own_address(read) == same
    assert any("this gateway's own address" in problem for problem in conflicts(read)) is bool(same)


def test_an_error_names_the_engine_that_is_wrong() -> None:
    for argv, said in (
        (["--backend", "localhost:8000"],
         "flag --backend = 'localhost:8000': must begin with http:// or https://, as in http://localhost:8000"),
        (["--backend", "http://a:1,b:2"], "must begin with http:// or https://, as in http://b:2; 'b:2' is not"),
        (["--backend", "127.0.0.1"], "flag --backend = '127.0.0.1': must be an engine's http://"),
        (["--backend", "http://a:1", "http://u:s@b:2/"],
         "unexpected argument 'http://***@b:2/': settings are given as --flag VALUE; "
         "--backend is repeated for each engine"),
    ):  # fmt: skip
        with pytest.raises(SettingsError) as refused:
            load(argv, {})
        assert said in str(refused.value)

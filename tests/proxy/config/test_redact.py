"""Values that may hold a secret, as they are shown: nothing of it, and enough of the rest to mend a setting."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.loader import exposed, load
from proxy.config.redact import Known, secrets_in, shown_path, shown_url, shown_word
from proxy.errors import SettingsError
from proxy.program import check

CANARY = "Hunter2-canary-9f8e7d"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0?db=1&ssl_ca_certs=/ca.pem", "redis://h:6379/0?db=1&ssl_ca_certs=/ca.pem"),
        (f"redis://u:{CANARY}@h:1/0", "redis://***@h:1/0"),
        (f"redis://{CANARY}@h", "redis://***@h"),
        (f"redis://:{CANARY}", "redis://***"),
        (f"redis://h/{CANARY} x", "redis://***"),
        (f"rediss://h?ssl_password={CANARY}", "rediss://h?ssl_password=***"),
        (f"rediss://h?%70assword={CANARY}&db=1", "rediss://h?***&db=1"),
        (f"rediss://h?username={CANARY}", "rediss://h?username=***"),
        (f"rediss://h?{CANARY}", "rediss://h?***"),
        (f"http://u:{CANARY}%40h:80", "http://***"),
        (f"http://u%40{CANARY}/", "http://***"),
        (f"redis://h#{CANARY}", "redis://***"),
        (f"redis:/{CANARY}", "redis://***"),
        (f"redis+cluster://u:{CANARY},x@a:1,[::1]:2,b/0", "redis+cluster://***@a:1,[::1]:2,b/0"),
        (f"redis+cluster://a,b/{CANARY}/", "redis+cluster://a,b/***"),
        (f"rediss+cluster://:{CANARY},b", "rediss+cluster://***"),
        (f"redis+sentinel://a,b/m/1?sentinel_password={CANARY}", "redis+sentinel://a,b/m/1?***"),
        (f"redis://h,{CANARY}", "redis://***"),
        (CANARY, "***"),
        ("auto", "auto"),
        ("gpu-1:8000", "gpu-1:8000"),
        (f"user:{CANARY}", "***"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(
    st.text("Hx:&=% ,.[]", max_size=12),
    st.sampled_from(
        [
            "redis://{}@h",
            "redis://:{}@h:1",
            "redis+cluster://u:{}@a,b",
            "redis+sentinel://:{}@a,b/m",
            "rediss://h?a={}",
            "redis://h?{}",
            "redis://:{}",
            "http://{}@h",
        ]
    ),
)
def test_no_form_of_a_url_shows_its_password(around: str, form: str) -> None:
    assert CANARY not in shown_url(form.format(around + CANARY + around))


@pytest.mark.parametrize(
    "text", ["/etc/keys.toml", "./k", "../k", "~/k", "keys.toml", "a/b.pem", "no-such", ".", ""]
)
def test_a_path_is_shown(text: str) -> None:
    assert shown_path(text) == repr(text)


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        "sk-abcdefgh1",
        "hunter2",
        "-----BEGIN PRIVATE KEY-----\nMII",
        "a.b.c" * 20 + "ABCDEFGHIJ",
        "redis://u:p@h",
    ],
)
def test_what_may_be_the_key_itself_is_not(text: str) -> None:
    assert text not in shown_path(text)


def test_words_are_shown_where_they_are_plain() -> None:
    assert (shown_word("serve"), shown_word("--backend-uri")) == ("'serve'", "'--backend-uri'")
    assert CANARY not in shown_word(CANARY) + shown_word("-" + CANARY)


def test_known_secrets_are_taken_out_of_others_words() -> None:
    known = Known()
    known.hide(["abc", "secret", "secret-longer", *secrets_in("redis://me:p%40ss@h/0?ssl_password=tls-pw&db=1")])
    assert (
        known.out_of("AUTH me p%40ss p@ss tls-pw secret-longer secret abc db 1")
        == "AUTH me *** *** *** *** *** abc db 1"
    )
    assert repr(known) == "<Known 5>"
    assert secrets_in("auto") == secrets_in("redis://h/1?db=2") == []


# -- settings ---------------------------------------------------------------------------------------


def refusals() -> list[tuple[list[str], dict[str, str]]]:
    """Each a mistake that puts a secret where it is refused."""
    found: list[tuple[list[str], dict[str, str]]] = [
        (["--backend-api-key", f"Bearer {CANARY}"], {}),
        (["--backend-api-key", "Bearer", CANARY], {}),
        ([f"--metrics-key={CANARY}"], {}),
        (["--metrics-key", CANARY], {}),
        (["--no-such-key", "a", CANARY], {}),
        ([f"-{CANARY}"], {}),
        ([f"--backend-api-kye={CANARY}"], {}),
        ([], {"GATEWAY_METRICS_KEY": CANARY}),
        ([], {"GATEWAY_BACKEND_API_KEY": f"two {CANARY}"}),
        ([], {"GATEWAY_API_KEYS_FILE": f"redis://u:{CANARY}@h"}),
    ]
    redis = ("redis://:{}", "redis:// u:{}@h", "mysql://u:{}@h", "{}@h:1", "redis://h/{}", "redis://u:{}%40h:1")
    engines = (
        "http://u:{}@h",
        "http://u:{}%40h",
        "u:{}@h",
        "http://h/?key={}",
        "http://h/#{}",
        "http://h, u:{}@h ,x",
    )
    found += [([], {"GATEWAY_REDIS_URL": form.format(CANARY)}) for form in redis]
    return found + [([], {"GATEWAY_BACKENDS": form.format(CANARY)}) for form in engines]


@pytest.mark.parametrize(("argv", "environ"), refusals())
def test_a_refused_setting_is_named_without_the_secret(argv: list[str], environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as e:
        load(argv, environ)
    assert CANARY not in str(e.value)
    assert any(name in str(e.value) for name in ("flag", "argument", "GATEWAY_"))


@pytest.mark.parametrize(
    "name",
    [
        *("api_keys_file", "backend_api_key_file", "tls_cert", "tls_key", "deny_file"),
        *("backend_ca", "backend_cert", "backend_key"),
    ],
)
def test_a_key_in_place_of_its_file_is_not_shown(name: str) -> None:
    for value in (CANARY, f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----"):
        settings = load([], {f"GATEWAY_{name.upper()}": value})
        with pytest.raises(SettingsError) as e:
            check(settings)
        assert CANARY not in str(e.value)
        assert name in str(e.value)


@pytest.mark.parametrize(
    "environ",
    [
        {"GATEWAY_BACKEND_API_KEY": CANARY},
        {"GATEWAY_REDIS_URL": f"redis://user:{CANARY}@h:1/0"},
        {"GATEWAY_REDIS_URL": f"rediss://h:1/0?ssl_password={CANARY}&db=2"},
        {"GATEWAY_REDIS_URL": f"redis://h:1/0?password={CANARY}"},
    ],
)
def test_settings_in_force_are_shown_and_represented_without_secrets(
    environ: dict[str, str], tmp_path: Path
) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        settings = load([], environ)
        text, warnings = check(settings)
    assert CANARY not in "".join((text, *warnings, repr(settings), out.getvalue(), err.getvalue()))
    name, value = next(iter(environ.items()))
    argv = ["--" + name.removeprefix("GATEWAY_").removesuffix("_URL").lower().replace("_", "-"), value]
    settings = load(argv, {})
    (told,) = exposed(settings, argv)
    assert "process list" in told
    assert CANARY not in told
    assert exposed(settings, []) == []


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_quoted_key_is_warned_of(quote: str, tmp_path: Path) -> None:
    quoted = f"{quote}{CANARY}{quote}"
    _, (odd,) = check(load([], {"GATEWAY_BACKEND_API_KEY": quoted}))
    assert "quotes" in odd
    file = tmp_path / "key"
    file.write_text(quoted + "\n")
    file.chmod(0o600)
    _, warnings = check(load([], {"GATEWAY_BACKEND_API_KEY_FILE": str(file)}))
    assert ["quotes" in warning for warning in warnings] == [True]
    assert CANARY not in odd + warnings[0]


@pytest.mark.parametrize(
    "host", ['"127.0.0.1"', "'0.0.0.0'", "256.0.0.1", "1.2.3", ":1", "a b", "a/b", "::g", "h\u00f6st", ""]
)
def test_a_host_that_can_be_none_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="must be an address or a host name"):
        load(["--host", host], {})


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::", "[::1]", "localhost", "a-b.example", "fe80::1%eth0", "my_host"]
)
def test_a_host_that_can_be_one_is_taken(host: str) -> None:
    assert load(["--host", host], {}).host == host.strip("[]")

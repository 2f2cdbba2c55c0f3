"""What the settings name: which may be meant together, how a file is read, and what is warned of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from proxy import resources as preparing
from proxy.access.denylist.rules import read_deny_list
from proxy.config.conflicts import conflicts
from proxy.config.files import read_file
from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.resources import prepare, read_backend_key
from proxy.telemetry.certificates import DAY
from tests.kit.certificates import Authority
from tests.proxy.access.test_policy import entry


@pytest.mark.parametrize(
    "together",
    [
        {"backend_api_key": "a"},
        {"backend_api_key_file": "f"},
        {"forward_authorization": True},
        {"share_scope": "global"},
        {"backend_api_key": "a", "share_scope": "global"},
        {"port": 0},
        {"port": 9091},
        {"admin_port": 9091},
        {"admin_port": 8080, "listen_unix": "/s"},
        {"admin_port": 9091, "admin_host": "0.0.0.0"},
        {"deny_answers": True, "deny_file": "d"},
        {"deny_file": "d"},
        {"proxy_protocol": True, "trusted_proxies": ("::1",)},
        {"trusted_proxies": ("::1",), "tls_cert": "c"},
        {"rate_limit_burst": 5, "rate_limit_rps": 1.0},
        {"rate_limit_burst": 5, "api_keys_file": "k"},
        {"rate_limit_rps": 1.0},
        {"api_keys_file": "k"},
        {"global_limit_burst": 5, "global_limit_rps": 1.0},
        {"global_limit_rps": 1.0},
        {"pace_ttft_ms": 5.0, "max_inflight": 0},
        {"max_inflight": 3},
        {"max_tokens_action": "refuse", "max_tokens_cap": 5},
        {"max_tokens_cap": 5},
        {"tls_key": "k", "tls_cert": "c"},
        {"tls_cert": "c"},
    ],
    ids=str,
)
def test_what_may_be_meant_together_is_no_conflict(together: dict[str, Any]) -> None:
    assert conflicts(Settings(**together)) == []


def test_settings_that_do_not_go_together_are_each_told() -> None:
    wrong = Settings(
        backend_api_key="a",
        backend_api_key_file="f",
        forward_authorization=True,
        share_scope="global",
        tls_key="k",
    )
    assert [line.partition(" ")[0] for line in conflicts(wrong)] == [
        "backend_api_key",
        "forward_authorization",
        "forward_authorization",
        "tls_key",
    ]
    held = Settings(backend_api_key_file="f", forward_authorization=True)
    assert [line.partition(" ")[0] for line in conflicts(held)] == ["forward_authorization"]


# -- one file


def test_a_file_may_be_as_large_as_is_allowed_and_no_byte_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.config.files.MAX_FILE", 10)
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    assert read_file("deny_file", str(path)) == "0123456789"
    path.write_bytes(b"0123456789x")
    with pytest.raises(SettingsError, match=f"^deny_file = '{path}': is larger than 10 bytes$"):
        read_file("deny_file", str(path))


def test_a_file_is_text_in_utf_8_with_a_mark_or_without(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for data in ("h\u00e9".encode(), b"\xef\xbb\xbf" + "h\u00e9".encode()):
        path.write_bytes(data)
        assert read_file("deny_file", str(path)) == "h\u00e9"
    path.write_bytes(b"abc\xff")
    with pytest.raises(SettingsError, match=rf"^deny_file = '{path}': is not UTF-8 \(line 1, byte 3\)$"):
        read_file("deny_file", str(path))


@pytest.mark.parametrize(
    ("mode", "open_to_others"), [(0o600, False), (0o400, False), (0o640, True), (0o601, True)]
)
def test_a_file_of_secrets_that_others_may_read_is_warned_of(
    tmp_path: Path, mode: int, open_to_others: bool
) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    path.chmod(mode)
    warnings: list[str] = []
    read_file("api_keys_file", str(path), warnings)
    told = [f"api_keys_file = '{path}': others may read it (mode {mode:04o}); chmod 600 it"]
    assert warnings == (told if open_to_others else [])
    read_file("deny_file", str(path))  # no secrets: nothing to warn of


def test_a_file_that_holds_no_key_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("key\n")
    assert read_backend_key(str(path)) == "key"
    for text, why in (("", "holds no key"), ("none", "holds no key"), ("a b", "must be a key of printable")):
        path.write_text(text)
        with pytest.raises(SettingsError, match=f"^backend_api_key_file = '{path}': {why}"):
            read_backend_key(str(path))


# -- all of them


@pytest.mark.parametrize(
    ("key", "quoted"),
    [("'a'", True), ('"a"', True), ("''", True), ("'", False), ("'a\"", False), ("'a", False), ("aXa", False)],
)
def test_a_key_in_quotes_is_warned_of(key: str, quoted: bool) -> None:
    warnings = prepare(Settings(backend_api_key=key)).warnings
    assert [words.partition(":")[0] for words in warnings] == ["backend_api_key"] * quoted


def keys(folder: Path, *, operator: bool) -> str:
    path = folder / "keys.toml"
    path.write_text(entry("ka", "team-a") + ('role = "operator"\n' if operator else ""))
    path.chmod(0o600)
    return str(path)


@pytest.mark.parametrize(
    ("operator", "metrics_key", "warned"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_keys_of_which_none_is_an_operator_s_are_warned_of(
    tmp_path: Path, operator: bool, metrics_key: bool, warned: bool
) -> None:
    made = prepare(Settings(api_keys_file=keys(tmp_path, operator=operator), metrics_key=metrics_key))
    assert made.rules.identity.ring is not None
    assert ["no key has role" in words for words in made.warnings] == [True] * warned


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"admin_port": 9091, "admin_host": "0.0.0.0"}, True),
        ({"admin_port": 9091, "admin_host": "::1"}, False),
        ({"admin_port": 9091, "admin_host": "localhost"}, False),
        ({"admin_port": 9091}, False),
        ({}, False),
    ],
)
def test_a_listener_of_operators_that_all_may_reach_is_warned_of(
    tmp_path: Path, given: dict[str, Any], warned: bool
) -> None:
    words = "admin_host = 0.0.0.0: without api_keys_file everyone who reaches it is an operator"
    assert prepare(Settings(**given)).warnings == [words] * warned
    with_keys = Settings(api_keys_file=keys(tmp_path, operator=True), **given)
    assert prepare(with_keys).warnings == []


def test_keys_that_go_on_to_engines_are_warned_of(tmp_path: Path) -> None:
    path = keys(tmp_path, operator=True)
    (words,) = prepare(Settings(api_keys_file=path, forward_authorization=True)).warnings
    assert words.startswith("forward_authorization: engines receive the API keys")
    assert prepare(Settings(forward_authorization=True)).warnings == []


def test_certificates_are_read_with_the_time_at_which_they_expire(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, engines, theirs = (authority.issue(f"n{days}", days=days) for days in (5, 6, 7))
    for issued in (ours, engines, theirs):
        issued.key.chmod(0o600)
    made = prepare(
        Settings(
            tls_cert=str(ours.cert),
            tls_key=str(ours.key),
            backend_cert=str(engines.cert),
            backend_key=str(engines.key),
            redis=f"rediss://h/0?ssl_certfile={theirs.cert}&ssl_keyfile={theirs.key}",
        )
    )
    left = [
        expires - time.time() for expires in (made.tls_expires, made.backend_cert_expires, made.redis_cert_expires)
    ]
    assert left == [pytest.approx(days * DAY, abs=120) for days in (5, 6, 7)]
    assert made.tls is not None
    assert made.warnings == []
    bare = prepare(Settings())
    assert (bare.tls, bare.rules.deny, bare.tls_expires, bare.backend_cert_expires, bare.redis_cert_expires) == (
        None,
        None,
        0.0,
        0.0,
        0.0,
    )


def test_the_key_of_a_certificate_is_a_secret_wherever_it_is(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("localhost")
    both = tmp_path / "both.pem"
    both.write_bytes(issued.cert.read_bytes() + issued.key.read_bytes())
    for path in (both, issued.key):
        path.chmod(0o644)
    (apart,) = prepare(Settings(tls_cert=str(issued.cert), tls_key=str(issued.key))).warnings
    assert apart.startswith(f"tls_key = '{issued.key}': others may read it")
    (together,) = prepare(Settings(tls_cert=str(both))).warnings
    assert together.startswith(f"tls_key = '{both}': others may read it")


def test_a_deny_list_is_read_and_another_may_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "deny"
    path.write_text("one\ntwo\n")
    made = prepare(Settings(deny_file=str(path)))
    assert made.rules.deny is not None
    assert len(made.rules.deny) == 2
    other = read_deny_list("x", "x")
    made.rules.renew_deny_list(other)
    assert made.rules.deny is other


def test_where_requests_are_traced_what_that_takes_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(environ: object) -> None:
        raise SettingsError("trace = otlp: the package is missing")

    monkeypatch.setattr(preparing, "packages", missing)
    assert prepare(Settings()).warnings == []
    with pytest.raises(SettingsError, match="the package is missing"):
        prepare(Settings(trace="otlp"))


def test_the_engines_key_is_the_file_s_where_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("k3y\n")
    path.chmod(0o644)
    made = prepare(Settings(backend_api_key_file=str(path)))
    assert made.backend_key == "k3y"
    assert "k3y" not in repr(made)
    assert [words.partition(":")[0] for words in made.warnings] == [f"backend_api_key_file = '{path}'"]
    assert prepare(Settings(backend_api_key="k")).backend_key == "k"
    assert prepare(Settings()).backend_key == ""
    with pytest.raises(SettingsError, match=r"^deny_file = 'no-such': No such file or directory$"):
        read_file("deny_file", "no-such")

"""What the settings name is read at once; what cannot be meant together is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from proxy.config.loader import load
from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.program import check
from proxy.resources import prepare
from tests.kit.certificates import Authority


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"backend_api_key": "a", "backend_api_key_file": "b"}, "are both given"),
        ({"backend_api_key": "a", "forward_authorization": True}, "give one"),
        ({"forward_authorization": True, "share_scope": "global"}, "give one"),
        ({"admin_port": 8080}, "admin_port must differ"),
        ({"admin_host": "0.0.0.0"}, "admin_host needs admin_port"),
        ({"deny_answers": True}, "deny_answers needs deny_file"),
        ({"max_tokens_action": "refuse"}, "max_tokens_action = refuse needs max_tokens_cap"),
        ({"proxy_protocol": True}, "proxy_protocol needs trusted_proxies"),
        ({"proxy_protocol": True, "trusted_proxies": ("::1",), "tls_cert": "c"}, "not supported with tls_cert"),
        ({"rate_limit_burst": 5}, "rate_limit_burst needs rate_limit_rps"),
        ({"global_limit_burst": 5, "rate_limit_rps": 1.0}, "global_limit_burst needs global_limit_rps"),
        ({"pace_ttft_ms": 5.0, "max_inflight": 256}, "pace_ttft_ms needs max_inflight = auto"),
        ({"tls_key": "k"}, "tls_key needs tls_cert"),
        ({"api_keys_file": "no-such"}, "api_keys_file = 'no-such': No such file"),
        ({"deny_file": "."}, "deny_file = '.': Is a directory"),
        ({"tls_cert": "no-such"}, "tls_cert = 'no-such'"),
        ({"backend_api_key_file": "no-such"}, "backend_api_key_file = 'no-such'"),
        ({"listen_unix": "/no-such/s"}, "listen_unix = '/no-such/s': there is no folder /no-such"),
        ({"listen_unix": "/usr"}, "listen_unix = '/usr': there is something that is no socket"),
        ({"listen_unix": "/tmp/" + "x" * 120}, "the system takes no path over 107 bytes"),
        ({"record_file": "/no-such/r"}, "record_file = '/no-such/r': there is no folder /no-such"),
        ({"record_file": "/usr"}, "record_file = '/usr': is a folder"),
        ({"admission": "fleet"}, "admission = fleet needs redis or state_redis"),
        ({"admission": "fleet", "redis": "off"}, "admission = fleet needs redis or state_redis"),
    ],
)
def test_what_cannot_be_used_is_told(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as e:
        prepare(Settings(**changes))
    assert says in str(e.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as e:
        prepare(Settings(api_keys_file="no-such", deny_file="nor-this", metrics_key=False, deny_answers=True))
    assert len(str(e.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["", " \n", "a b", "a\nb", "\xe9"])
def test_a_key_that_is_none_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(SettingsError) as e:
        prepare(Settings(backend_api_key_file=str(path)))
    assert "backend_api_key_file" in str(e.value)
    assert "\xe9" not in str(e.value)


def test_the_engine_s_key_is_in_no_repr_and_a_bad_one_in_no_error() -> None:
    prepared = prepare(Settings(backend_api_key="hunter2"))
    assert prepared.backend_key == "hunter2"
    assert "hunter2" not in repr(prepared) + repr(Settings(backend_api_key="hunter2"))
    with pytest.raises(SettingsError) as e:
        load([], {"GATEWAY_BACKEND_API_KEY": "hunter2 x"})
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        (
            {"listen_unix": "/run/g.sock", "port": 9000},
            ["port = 9000: not used, listen_unix is given"],
        ),
        ({"listen_unix": "/run/g.sock"}, []),
        ({"port": 9000}, []),
    ],
)
def test_a_port_that_is_given_beside_a_socket_is_warned_of(given: dict[str, Any], warned: list[str]) -> None:
    assert prepare(Settings(**given)).warnings == warned


def test_the_settings_are_shown_as_they_are_read_without_secrets() -> None:
    settings = load(
        ["--backend", "http://h:1", "--max-n", "3"],
        {"GATEWAY_BACKEND_API_KEY": "hunter2", "GATEWAY_REDIS_URL": "redis://u:hunter2@h/0"},
    )
    text, warnings = check(settings)
    assert "hunter2" not in text
    assert warnings == []
    again = load(["--config", "x"], {}, read_file=lambda path: text.replace("redis://***@h", "redis://h"))
    assert again.backends == settings.backends
    assert (again.max_n, again.drain_timeout) == (3, settings.drain_timeout)


def test_a_certificate_that_has_expired_is_warned_of(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    old, good = authority.issue("old", days=-1), authority.issue("good")
    for issued, warned in ((old, True), (good, False)):
        cert, key = str(issued.cert), str(issued.key)
        _, warnings = check(Settings(tls_cert=cert, tls_key=key, backend_cert=cert, backend_key=key))
        told = [
            line for line in warnings if re.fullmatch(r"\w+: the certificate expired on \d{4}-\d\d-\d\d", line)
        ]
        assert [line.partition(":")[0] for line in told] == (["tls_cert", "backend_cert"] if warned else [])


def test_a_wrong_keys_file_or_deny_list_is_told_by_its_setting(tmp_path: Path) -> None:
    keys, deny = tmp_path / "keys.toml", tmp_path / "deny.txt"
    keys.write_text("[[keys]]\nname = 'a'\nsha256 = 'x'\n")
    deny.write_text("# nothing\n")
    with pytest.raises(SettingsError) as e:
        prepare(Settings(api_keys_file=str(keys), deny_file=str(deny)))
    first, second = str(e.value).splitlines()
    assert first.startswith(f"api_keys_file: {keys}:1: sha256: must be")
    assert second.startswith(f"deny_file: {deny}: holds no rule")


def test_a_recording_is_not_begun_by_the_check(tmp_path: Path) -> None:
    path = tmp_path / "r"
    prepare(Settings(record_file=str(path)))
    assert not path.exists()

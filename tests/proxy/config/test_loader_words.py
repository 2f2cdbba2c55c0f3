"""What is said of settings that cannot be read: how much of a value is shown, which names are near."""

from __future__ import annotations

import pytest

from proxy.config.loader import exposed, load
from proxy.config.settings import Settings
from tests.proxy.config.test_loader import loaded, wrong


@pytest.mark.parametrize(
    ("total", "token", "lines"),
    [
        ("100", "100", 0),
        ("100", "101", 1),
        ("0", "101", 0),
    ],
)
def test_a_value_may_be_as_large_as_its_bound(total: str, token: str, lines: int) -> None:
    argv = ["--total-timeout", total, "--token-timeout", token]
    if lines:
        assert wrong(argv) == [
            "flag --token-timeout = 101s: must not be over total_timeout, which is 100s "
            "(flag --total-timeout): it would have no effect"
        ]
    else:
        assert loaded(argv).token_timeout == float(token)


def test_a_default_stays_where_its_bound_allows_it() -> None:
    settings = loaded(["--total-timeout", "100000"])
    assert settings.first_token_timeout == Settings().first_token_timeout
    assert settings.connect_timeout == Settings().connect_timeout


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["--xyzzy", "value"], ["unknown flag '--xyzzy'"]),
        (
            ["--xyzzy=1", "value"],
            ["unknown flag '--xyzzy'", "unexpected argument 'value': settings are given as --flag VALUE"],
        ),
        (["a", "b"], [f"unexpected argument {word!r}: settings are given as --flag VALUE" for word in ("a", "b")]),
        (["--confi", "x"], ["unknown flag '--confi'; did you mean --config?"]),
        (["--check-confi"], ["unknown flag '--check-confi'; did you mean --check-config?"]),
        (["--metrics-key=s3cret"], ["flag --metrics-key: takes no value"]),
        (["--help=5"], ["flag --help: takes no value"]),
        (["--print-completion"], ["flag --print-completion: needs a value"]),
        (["--config"], ["flag --config: needs a value"]),
    ],
)
def test_what_no_flag_is_told(argv: list[str], lines: list[str]) -> None:
    assert wrong(argv) == lines


def test_a_value_is_shown_up_to_a_length() -> None:
    for size, shown in ((200, "x" * 200), (201, "x" * 200 + "…")):
        (line,) = wrong(environ={"GATEWAY_PORT": "x" * size})
        assert (
            line == f"environment GATEWAY_PORT = {shown!r}: must be a whole number from 0 to 65535, such as 8080"
        )
    url = "ftp://" + "h" * 300
    for argv, environ in ((["--redis", url], {}), (["--backend", url], {}), ([], {"GATEWAY_BACKENDS": url})):
        (line,) = wrong(argv, environ)
        assert f"'{url[:200]}'" in line
        assert url[:201] not in line


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"GATEWAY_BACKEND_API_KEY": "a b"}, "GATEWAY_BACKEND_API_KEY = ***: "),
        ({"GATEWAY_METRICS_KEY": "s3cret"}, "GATEWAY_METRICS_KEY = ***: "),
        ({"GATEWAY_PAGE": "s3cret"}, "GATEWAY_PAGE = 's3cret': "),
        ({"GATEWAY_DENY_FILE": "http://u:s3cret@h"}, "GATEWAY_DENY_FILE = "),
    ],
)
def test_a_value_that_may_be_a_secret_is_not_shown(environ: dict[str, str], words: str) -> None:
    (line,) = wrong(environ=environ)
    assert words in line
    assert "s3cret" not in line or "GATEWAY_PAGE" in line


def test_a_file_of_other_shapes_is_told_without_what_it_holds() -> None:
    text = 'backends = ["ftp://u:s3cret@h", 5]\nport = {a = "s3cret"}\ndeny_file = "a\\u0000b"\n'
    first, second, third = wrong(file=text)
    assert first.startswith("file x.toml: backends = ['ftp://***@h', '***']: ")
    assert second.startswith("file x.toml: port = a table: ")
    assert third.startswith("file x.toml: deny_file = ")


def test_a_file_that_fails_without_a_reason_of_the_system_s_is_told_its_own() -> None:
    def read_file(path: str) -> str:
        raise OSError("odd")

    with pytest.raises(Exception, match=r"^file x: odd$"):
        load(["--config", "x"], {}, read_file)


@pytest.mark.parametrize(
    ("environ", "warned"),
    [
        ({"GATEWAY_X_PORT": "tcp://h:1"}, []),
        ({"GATEWAY_X_PORT": "80"}, ["environment GATEWAY_X_PORT: ignored: no such setting"]),
        ({"GATEWAY_XYZZY": "tcp://h:1"}, ["environment GATEWAY_XYZZY: ignored: no such setting"]),
        ({"GATEWAY_PORT": "udp://h:1"}, ["environment GATEWAY_PORT: ignored: a Kubernetes service link"]),
        ({"OTHER_XYZZY": "1"}, []),
    ],
)
def test_a_variable_that_is_no_setting_is_warned_of(environ: dict[str, str], warned: list[str]) -> None:
    assert [words.partition(";")[0].partition(",")[0] for words in loaded(environ=environ).warnings] == warned


def test_a_setting_other_than_the_port_may_look_like_a_link() -> None:
    assert "must be" in wrong(environ={"GATEWAY_ADMIN_PORT": "tcp://h:1"})[0]


def test_what_is_exposed_by_a_flag_is_a_secret_that_was_given_as_one() -> None:
    settings = loaded(["--backend-api-key", "k"], {"GATEWAY_REDIS_URL": "redis://u:p@h"})
    (told,) = exposed(settings, ["--backend-api-key=k"])
    assert told == (
        "flag --backend-api-key: visible to every user of this machine in the process list; "
        "use GATEWAY_BACKEND_API_KEY"
    )
    assert len(exposed(settings, ["--backend-api-key", "k", "--redis", "redis://u:p@h"])) == 2
    plain = loaded(["--redis", "redis://h", "--backend", "http://h"])
    assert exposed(plain, ["--redis", "redis://h", "--backend", "http://h"]) == []

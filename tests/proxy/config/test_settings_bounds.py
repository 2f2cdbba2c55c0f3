"""The kinds of settings at their bounds, how a default is shown, and which switches are on unless told."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config.settings import KIB, MIB, Option, Settings, options, settings_table

OPTIONS = {option.name: option for option in options()}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("queue_limit", [1], [0]),
        ("port", [0, 65535], [-1, 65536]),
        ("rate_limit_streams", [0, 10**9], [-1, 10**9 + 1]),
        ("rate_limit_rps", [0.0, 10.0**6], [-0.1, 10.0**6 + 1]),
        ("total_timeout", [0.0], [-0.1]),
        ("max_body_bytes", [1024, 2**50], [1023, 2**50 + 1]),
        ("max_n", [0], [-1]),
    ],
)
def test_a_setting_takes_its_bounds_and_nothing_beyond(name: str, good: list[Any], bad: list[Any]) -> None:
    read = OPTIONS[name].read
    assert [read(value) for value in good] == good
    for value in bad:
        with pytest.raises(ValueError, match="must be"):
            read(value)


def test_a_switch_is_off_unless_told_but_for_two() -> None:
    assert {option.name for option in options() if option.default is True} == {"metrics_key", "page"}
    assert all(option.is_switch is (option.default is True or option.default is False) for option in options())


def option(default: Any, metavar: str = "N") -> Option:
    return Option(
        name="n", default=default, read=lambda raw: raw, help="H.", metavar=metavar, env=("GATEWAY_N",), flag="--n"
    )


@pytest.mark.parametrize(
    ("default", "metavar", "shown"),
    [
        (True, "on|off", "on"),
        (False, "on|off", "off"),
        (0, "N|auto", "auto"),
        (1, "N|auto", "1"),
        (0, "BYTES|auto", "auto"),
        (0, "N", "0"),
        (1024, "BYTES", "1KiB"),
        (1024, "N", "1024"),
        (0.5, "SECONDS", "0.5s"),
        (300.0, "SECONDS", "300s"),
        (0.1, "MS", "0.1ms"),
        (100, "MS", "100ms"),
        (0.0, "MS", "0"),
        (64, "MIB", "64MiB"),
        (1e300, "SECONDS", "1e+300s"),
        (("a", "b"), "URL", "a, b"),
        (2.0, "BYTES", "2"),
        ("", "FILE", "none"),
        ((), "URL", "none"),
        ("x", "WORD", "x"),
    ],
)
def test_a_default_is_shown_as_it_would_be_typed(default: Any, metavar: str, shown: str) -> None:
    assert option(default, metavar).shown_default == shown
    assert option(default).hidden is False


def test_what_is_hidden_is_in_no_repr() -> None:
    hidden = [one.name for one in options() if one.hidden]
    assert hidden == ["backend_api_key", "cache_salt"]
    assert "k3y" not in repr(Settings(backend_api_key="k3y", cache_salt="k3y"))
    assert "port=8080" in repr(Settings())
    assert Settings(config="a") == Settings(config="b")
    assert (KIB, MIB) == (1024, 1_048_576)


def test_a_bar_in_the_table_is_no_column() -> None:
    rows = settings_table().splitlines()
    (share,) = [row for row in rows if "`--share " in row]
    assert "`--share auto\\|all\\|off`" in share
    assert all(row.startswith("| `--") for row in rows if "`" in row)
    (page,) = [row for row in rows if "`page`" in row]
    assert page.startswith("| `--page` | ")
    assert settings_table().endswith("|\n")

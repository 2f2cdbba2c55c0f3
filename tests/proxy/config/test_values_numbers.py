"""A number that is none is refused in words, whatever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.config import values
from proxy.config.keys_file import read_keys_file
from proxy.config.loader import load
from proxy.config.settings import options
from proxy.errors import SettingsError


@pytest.mark.parametrize("raw", ["x", "", "1,5", 10**400, None, [1], "nan", True])
def test_what_is_no_number_is_refused_with_the_bounds(raw: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^must be a number from 0.5 to 2(; digits may be grouped by _, as in 1_000_000)?$"
    ):
        values.number(0.5, 2.0)(raw)


@pytest.mark.parametrize("name", ["rate_limit_rps"])
def test_a_rate_is_none_or_one_whose_wait_can_be_said(name: str) -> None:
    read = next(option for option in options() if option.name == name).read
    assert [read(raw) for raw in (0, "0", 1e-6, "0.5", 10**6)] == [0.0, 0.0, 1e-6, 0.5, 1e6]
    for raw in (1e-320, 1e-300, 0.9e-6):
        with pytest.raises(ValueError, match=r"^must be 0, or from 0.000001 to 1,000,000$"):
            read(raw)


@pytest.mark.parametrize("text", ["port = 1" + "0" * 400, "port = 0x1" + "f" * 4000])
def test_a_number_of_thousands_of_digits_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"port = a number of \d+ bits: must be"):
        load(["--config", str(file)], {})


def test_limits_of_a_key_are_bounded(tmp_path: Path) -> None:
    entry = f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n'
    for line in (f"burst = {'9' * 400}", f"tokens_per_minute = {10**9 + 1}", "rps = 1e-320", f"rps = {'9' * 400}"):
        with pytest.raises(SettingsError, match=line.partition(" ")[0]):
            read_keys_file(f"{entry}{line}\n", "keys.toml")
    (key,) = read_keys_file(f"{entry}burst = {10**9}\nrps = 0.000001\n", "keys.toml")
    assert (key.burst, key.rps) == (10**9, 1e-6)

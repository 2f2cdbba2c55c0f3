"""Reads TOML, and says what is wrong with it by line and setting, where `tomllib` gives line and column alone."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Container
from typing import Any, Final

_PLACE: Final = re.compile(r" \(at (?:line ([0-9]+), column [0-9]+|end of document)\)$")
_SETTING: Final = re.compile(r"\s*([A-Za-z0-9_-]+)\s*([=:])\s*(.?)")
_TWICE: Final = "Cannot overwrite a value"
_BARE: Final = ("Invalid value", "Expected newline or end of document after a statement")
_QUOTED: Final = "\"'[{"  # where such a value is wrong, quotes are not what it lacks


def read_toml(text: str, names: Container[str]) -> dict[str, Any]:
    """Raises ValueError. `names`: those that an error may repeat; other words of the file may be secrets."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ValueError(_words(text, str(e), names)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _words(text: str, error: str, names: Container[str]) -> str:
    place = _PLACE.search(error)
    if place is None:
        return error
    reason = error[: place.start()]
    lines = text.replace("\r\n", "\n").rstrip().split("\n")
    number = int(place[1] or len(lines))
    found = _SETTING.match(lines[number - 1]) if number <= len(lines) else None
    if found is None or found[1] not in names:
        return error
    name, sign, begin = found.groups()
    where = f"line {number}: {name}"
    if sign == ":":
        return f"{where}: a setting is written {name} = VALUE"
    if reason == _TWICE:
        return f"{where}: is given twice"
    if reason in _BARE and begin not in _QUOTED:
        return f'{where}: text, and a number with a unit, are in quotes: {name} = "…"'
    return f'{where}: {reason}; a list is written {name} = ["…", "…"]' if begin == "[" else f"{where}: {reason}"

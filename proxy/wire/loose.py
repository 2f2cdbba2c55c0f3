"""The loose types that vLLM's request models accept: `"stream": 1`, `"seed": "4"`, `"temperature": "0"`. For a
field that does not have the type that the API documents."""

from __future__ import annotations

import re
from typing import Any, Final

_TRUE: Final = frozenset(("1", "true", "t", "yes", "y", "on"))
_FALSE: Final = frozenset(("0", "false", "f", "no", "n", "off"))
_INTEGER: Final = re.compile(r"([+-]?[0-9]{1,18})(?:\.0{1,18})?")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,32}\.?[0-9]{0,32}|\.[0-9]{1,32})(?:[eE][+-]?[0-9]{1,2})?")
_SPACES: Final = " \t\r\n"

# As pydantic 2 reads them in lax mode, which vLLM uses. Rare spellings that pydantic also accepts ("1_000", "inf")
# are refused here: a request that both read must be read alike.


def boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.lower() if value.isascii() else ""
        return True if word in _TRUE else False if word in _FALSE else None
    return None


def integer(value: Any) -> int | None:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    match = _INTEGER.fullmatch(value.strip(_SPACES)) if isinstance(value, str) else None
    return int(match[1]) if match else None


def number(value: Any) -> float | None:
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            return None
    match = _NUMBER.fullmatch(value.strip(_SPACES)) if isinstance(value, str) else None
    return float(match[0]) if match else None

"""The alert rules as text: their names, and their windows shortened for a drill."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent.parent / "prometheus"
_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_WINDOW: Final = re.compile(r"(?P<open>\[|^ *for: )(?P<n>\d+)(?P<unit>ms|[smhd])(?P<close>\]|$)", re.MULTILINE)
_ALERT: Final = re.compile(r"^ +- alert: (\w+)$", re.MULTILINE)


def scaled(text: str, factor: float) -> str:
    """The rules with each `[window]` and `for:` divided by `factor`; nothing else changes."""

    def shorter(found: re.Match[str]) -> str:
        milliseconds = max(1, round(int(found["n"]) * _UNITS[found["unit"]] / factor))
        return f"{found['open']}{milliseconds}ms{found['close']}"

    return _WINDOW.sub(shorter, text)


def sections() -> dict[str, str]:
    """The text of each alert in the file, by name, in order."""
    _, *parts = _ALERT.split((FOLDER / "rules" / "alerts.yml").read_text("utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def alerts() -> list[str]:
    """The names of all alerts."""
    return list(sections())

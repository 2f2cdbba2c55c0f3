"""Writes ops/grafana/gateway.json; run it after a change of the panels."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ops.dashboard.build import text
from ops.dashboard.panels import ROWS

FILE: Final = Path(__file__).parent.parent / "grafana" / "gateway.json"


def main() -> None:
    FILE.write_text(text(ROWS), "utf-8")
    print(f"{FILE.name}: {sum(len(row.panels) for row in ROWS)} panels in {len(ROWS)} rows")


if __name__ == "__main__":
    main()

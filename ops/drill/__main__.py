"""Makes every fault, one after the other, and reports which alert fired after how many seconds (about three
minutes). Needs Debian's package `prometheus`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from ops.drill.faults import FAULTS, Fault
from ops.drill.report import Row, markdown
from ops.drill.rules import alerts
from ops.drill.stage import Stage, stage

FACTOR: Final = 200.0  # 5 minutes become 1.5 s, an hour 18
FIRE_SECONDS: Final = 40.0
QUIET_SECONDS: Final = 60.0


async def play(on: Stage, fault: Fault) -> list[Row]:
    """Make the fault, wait for its alerts, undo it. One row per alert, fired or not."""
    try:
        await on.prometheus.until_data(
            "count(up) == 1", seconds=QUIET_SECONDS
        )  # the gateways of earlier faults are forgotten
        await on.until_quiet(*fault.alerts, seconds=QUIET_SECONDS)
    except TimeoutError:
        return [Row(name, fault.what, None, "it fired before the fault was made", "") for name in fault.alerts]
    began = time.monotonic()
    rows = []
    async with fault.make(on):
        made = time.monotonic()
        for name in fault.alerts:
            try:
                fired = (await on.until_firing(name, seconds=FIRE_SECONDS))[name]
            except TimeoutError as e:
                rows.append(Row(name, fault.what, None, str(e), ""))
                continue
            words = fired["annotations"]
            said = f"{words['summary']}. {words['description']}"
            seconds = time.monotonic() - made
            rows.append(Row(name, fault.what, seconds, said, fired["value"]))
    print(f"  {fault.what}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    return rows


async def drill(binary: str, faults: list[Fault]) -> tuple[list[Row], dict[str, Any]]:
    """Run the drill: the rows, and the version of Prometheus."""
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        async with stage(binary, Path(folder), FACTOR) as on, on.gateway():  # one gateway that stays healthy
            build = await on.prometheus.ask("status/buildinfo")
            return [row for fault in faults for row in await play(on, fault)], build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ops.drill", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="WORD", help="only faults whose description or alerts contain this"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for drill.md and drill.json")
    parser.add_argument(
        "--prometheus", default="prometheus", metavar="PROGRAM", help="path of Prometheus (default: from the PATH)"
    )
    options = parser.parse_args()
    binary = shutil.which(options.prometheus)
    if binary is None:
        print(
            f"drill: {options.prometheus} is missing: apt-get install --no-install-recommends prometheus",
            file=sys.stderr,
        )
        return 2
    word = options.only.lower()
    faults = [fault for fault in FAULTS if word in f"{fault.what} {' '.join(fault.alerts)}".lower()]
    if not faults:
        print(f"drill: no fault contains {options.only!r}; the alerts are: {', '.join(alerts())}", file=sys.stderr)
        return 2
    rows, build = asyncio.run(drill(binary, faults))
    text = markdown(rows, build["version"], FACTOR)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "drill.md").write_text(text, "utf-8")
        (options.out / "drill.json").write_text(json.dumps([row.plain() for row in rows], indent=1), "utf-8")
    return 0 if all(row.seconds is not None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

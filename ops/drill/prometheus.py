"""One Prometheus for a drill: our rules with shorter windows, a list of targets, its HTTP API."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from ops.drill.process import started
from ops.drill.rules import FOLDER, scaled

SCRAPE_MS: Final = 250
PATIENCE: Final = 20.0  # seconds until it must listen
_LISTENS: Final = re.compile(r'"?Listening on"? address=(\S+)')

CONFIG: Final = """\
global: {{ scrape_interval: {scrape}ms, scrape_timeout: {scrape}ms, evaluation_interval: {scrape}ms }}
rule_files: [rules/*.yml]
scrape_configs:
  - job_name: gateway
    file_sd_configs: [{{ files: [targets.json] }}]
"""


class Prometheus:
    """A running Prometheus."""

    def __init__(self, folder: Path, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._folder = folder
        self._session = session

    def scrape(self, targets: Iterable[str]) -> None:
        """Scrape exactly these `host:port` as the job `gateway`."""
        _write_targets(self._folder, targets)

    async def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an API response. Raises RuntimeError with the error of Prometheus."""
        async with self._session.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            body = await response.json()
        if body["status"] != "success":
            raise RuntimeError(f"{parameters or path}: {body.get('error')}")
        return body["data"]

    async def query(self, expr: str) -> list[Any]:
        """An instant query's samples: `{"metric": {...}, "value": [time, text]}`."""
        return list((await self.ask("query", query=expr))["result"])

    async def until_data(self, *exprs: str, seconds: float) -> None:
        """Wait until each query has a sample that is a number. Raises TimeoutError naming those without."""
        silent = set(exprs)
        try:
            async with asyncio.timeout(seconds):
                while silent:
                    for expr in list(silent):
                        if any(sample["value"][1] != "NaN" for sample in await self.query(expr)):
                            silent.discard(expr)
                    await asyncio.sleep(SCRAPE_MS / 1000 if silent else 0)
        except TimeoutError:
            raise TimeoutError(f"no data for {sorted(silent)}") from None

    async def alerts(self) -> list[dict[str, Any]]:
        """The pending and firing alerts, with their labels and annotations."""
        return list((await self.ask("alerts"))["alerts"])

    async def firing(self) -> set[str]:
        """The names of the firing alerts."""
        return {alert["labels"]["alertname"] for alert in await self.alerts() if alert["state"] == "firing"}


def _write_targets(folder: Path, targets: Iterable[str]) -> None:
    new = folder / "targets.new"
    new.write_text(json.dumps([{"targets": sorted(targets)}]), "ascii")
    new.replace(folder / "targets.json")  # atomically: Prometheus watches the file


@asynccontextmanager
async def running(binary: str, folder: Path, factor: float, targets: Iterable[str]) -> AsyncIterator[Prometheus]:
    """A Prometheus on a free loopback port with its data in `folder`; windows of rules are divided by `factor`."""
    (folder / "rules").mkdir(parents=True)
    for path in (FOLDER / "rules").glob("*.yml"):
        (folder / "rules" / path.name).write_text(scaled(path.read_text("utf-8"), factor), "utf-8")
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(scrape=SCRAPE_MS), "ascii")
    _write_targets(folder, targets)
    words = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--query.lookback-delta=2s",  # the default of 5 minutes would keep stopped targets for the drill
    ]
    async with started(words, _LISTENS, PATIENCE) as process, aiohttp.ClientSession() as session:
        prometheus = Prometheus(folder, f"http://{process.address}", session)
        async with asyncio.timeout(PATIENCE):
            while not await _ready(session, prometheus.url):  # noqa: ASYNC110 - a fact of another process
                await asyncio.sleep(0.05)
        yield prometheus


async def _ready(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.get(f"{url}/-/ready") as response:
        return response.status == 200

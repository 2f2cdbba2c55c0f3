"""A real Prometheus scrapes a running gateway under load: every query of the dashboard has data, and some faults
fire their alerts (`python -m ops.drill` has one for each alert)."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ops.dashboard.panels import ROWS
from ops.drill.stage import Stage, clients, stage
from tests.kit.missing import PROMETHEUS
from tests.kit.running import pause
from tests.ops.kit import tool

FACTOR = 300.0  # five minutes are a second
PATIENCE = 600.0  # the time limit of the test comes first
REDIS_MS = "1000"  # on a busy machine the default would make Redis away by itself
FAULTS = ("GatewayEngineDown", "GatewayRedisAway", "GatewayLimitsLocal")

pytestmark = pytest.mark.e2e


@pytest.fixture
async def on() -> AsyncIterator[Stage]:
    program = tool("prometheus", PROMETHEUS)
    with tempfile.TemporaryDirectory(prefix="watch-") as folder:  # not tmp_path: a Unix socket's path is short
        async with stage(program, Path(folder), FACTOR) as found:
            yield found


def resolved(expr: str) -> str:
    return expr.replace("$__rate_interval", "2s").replace("$instance", ".*")


async def test_every_query_of_the_dashboard_has_data_and_faults_raise_their_alerts(on: Stage) -> None:
    queries = {resolved(expr) for row in ROWS for panel in row.panels for expr, _ in panel.queries}
    recorded = {rule["name"] for rule in await rules(on) if rule["type"] == "recording"}
    assert not any("$" in query for query in queries), "a variable that nothing resolves"
    async with (
        on.gateway("--fleet", "auto", "--redis-timeout-ms", REDIS_MS) as gateway,
        clients(gateway.address, 2) as unique,
        clients(gateway.address, 4, same=True) as same,
    ):
        await on.prometheus.until_data(*queries, *recorded, seconds=PATIENCE)
        while await on.prometheus.firing():  # a scrape that was late may fire, and is over soon
            await pause()
        assert set(unique.said) == set(same.said) == {"200"}

        await on.engines[0].down()
        on.redis.freeze()
        alerts = await on.until_firing(*FAULTS, seconds=PATIENCE)
        assert alerts["GatewayEngineDown"]["labels"]["backend"] == on.engines[0].url
        assert on.engines[0].url in alerts["GatewayEngineDown"]["annotations"]["summary"]
        assert alerts["GatewayRedisAway"]["labels"]["instance"] == gateway.address

        on.redis.thaw()
        await on.engines[0].up()
        await on.until_quiet(*FAULTS, seconds=PATIENCE)
        assert set(unique.said) == set(same.said) == {"200"}, "no client noticed any of it"

        await gateway.kill()
        down = await on.until_firing("GatewayDown", seconds=PATIENCE)
        assert down["GatewayDown"]["labels"] == {
            "alertname": "GatewayDown",
            "instance": gateway.address,
            "job": "gateway",
            "severity": "critical",
        }


async def rules(on: Stage) -> list[dict[str, str]]:
    groups = (await on.prometheus.ask("rules"))["groups"]
    return [rule for group in groups for rule in group["rules"]]

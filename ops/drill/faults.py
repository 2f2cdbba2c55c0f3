"""One fault for each alert, undone when its block ends."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from ops.drill.engine import Mood
from ops.drill.stage import Stage, clients, half_of_a_cluster

Make = Callable[[Stage], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A fault, and the alerts that must fire."""

    what: str
    make: Make
    alerts: tuple[str, ...]


FAULTS: Final[list[Fault]] = []


def _fault(what: str, *alerts: str) -> Callable[[Callable[[Stage], AsyncIterator[None]]], Make]:
    def register(make: Callable[[Stage], AsyncIterator[None]]) -> Make:
        made = asynccontextmanager(make)
        FAULTS.append(Fault(what, made, alerts))
        return made

    return register


@asynccontextmanager
async def _frozen_redis(stage: Stage) -> AsyncIterator[None]:
    stage.redis.freeze()
    try:
        yield
    finally:
        stage.redis.thaw()


@asynccontextmanager
async def _mood(stage: Stage, mood: Mood) -> AsyncIterator[None]:
    for engine in stage.engines:
        engine.mood = mood
    try:
        yield
    finally:
        if mood.hold is not None:
            mood.hold.set()
        for engine in stage.engines:
            engine.mood = Mood()


# Alerts with long windows come first, before other faults add to them: a day of look-ups, then the slow windows of
# the two objectives. Each alert must be quiet before its fault.


@_fault("hits, then only new prompts", "GatewayCacheHitsCollapsed")
async def hits_collapse(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway() as gateway:
        async with clients(gateway.address, 8, same=True):
            await asyncio.sleep(6)
        async with clients(gateway.address, 4):
            yield


@_fault("engines that answer 500, but pass their health check", "GatewayEngineBreakerOpen", "GatewayEngineErrors",
        "GatewayErrorBudgetBurnFast", "GatewayErrorBudgetBurnSlow")  # fmt: skip
async def engines_fail(stage: Stage) -> AsyncIterator[None]:
    async with (
        _mood(stage, Mood(fail=1.0)),
        stage.gateway("--breaker-seconds", "0.3", "--breaker-max-seconds", "0.6") as gateway,
        clients(gateway.address, 8),
    ):
        yield


@_fault("a TTFT of 3 s", "GatewayTtftBudgetBurnFast", "GatewayTtftBudgetBurnSlow")
async def first_tokens_late(stage: Stage) -> AsyncIterator[None]:
    async with (
        _mood(stage, Mood(ttft=3.0)),
        stage.gateway() as gateway,
        AsyncExitStack() as stack,
    ):
        for _ in range(6):  # staggered, so that every window has some first tokens
            await stack.enter_async_context(clients(gateway.address, 12))
            await asyncio.sleep(0.5)
        yield


@_fault("Redis stopped (SIGSTOP)", "GatewayRedisAway", "GatewayLimitsLocal")
async def redis_frozen(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway() as gateway, clients(gateway.address, 4), _frozen_redis(stage):
        yield


@_fault("Redis stopped for a gateway of a fleet", "GatewayFleetAway")
async def fleet_away(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway("--fleet", "auto") as gateway, clients(gateway.address, 4), _frozen_redis(stage):
        yield


@_fault("Redis stopped for a gateway that shares the limits of engines", "GatewayAdmissionAway")
async def admission_away(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway("--admission", "fleet") as gateway, clients(gateway.address, 4), _frozen_redis(stage):
        yield


@_fault("the gateway that generates for two is killed, and streams are not continued", "GatewayFleetStreamsLost")
async def leader_killed(stage: Stage) -> AsyncIterator[None]:
    flags = ("--fleet", "auto", "--resume", "off")
    async with (
        _mood(stage, Mood(tokens=200, gap=0.1)),
        stage.gateway(*flags) as leader,
        stage.gateway(*flags) as follower,
        clients(leader.address, 1, same=True),
    ):
        leads = f'gateway_fleet_led_total{{instance="{leader.address}"}} > 0'
        await stage.prometheus.until_data(leads, seconds=10)
        async with clients(follower.address, 1, same=True):
            follows = f'gateway_fleet_following{{instance="{follower.address}"}} > 0'
            await stage.prometheus.until_data(follows, seconds=10)
            await leader.kill()
            yield


@_fault("all clients at one of three gateways of a fleet", "GatewayFleetLeadsMost")
async def fleet_leads_most(stage: Stage) -> AsyncIterator[None]:
    fleet = ("--fleet", "auto", "--redis-namespace", "fleet")
    async with (
        stage.gateway(*fleet) as first,
        stage.gateway(*fleet),
        stage.gateway(*fleet),
        clients(first.address, 4),
    ):
        yield


@_fault("a user that Redis does not know", "GatewayRedisRefuses")
async def redis_refuses(stage: Stage) -> AsyncIterator[None]:
    url = stage.redis.url.replace("unix://", "unix://nobody:guess@")
    async with stage.gateway("--redis", url) as gateway, clients(gateway.address, 4):
        yield


@_fault("half of a Redis Cluster's slots without a master", "GatewayRedisServersAway")
async def redis_slots_lost(stage: Stage) -> AsyncIterator[None]:
    async with (
        half_of_a_cluster(stage.files) as url,
        stage.gateway("--redis", url) as gateway,
        clients(gateway.address, 4),
    ):
        yield


@_fault("one of two engines killed", "GatewayEngineDown")
async def engine_killed(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway() as gateway, clients(gateway.address, 4):
        await stage.engines[0].down()
        try:
            yield
        finally:
            await stage.engines[0].up()


@_fault("both engines killed", "GatewayNoEngine")
async def engines_killed(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway() as gateway, clients(gateway.address, 4):
        for engine in stage.engines:
            await engine.down()
        try:
            yield
        finally:
            for engine in stage.engines:
                await engine.up()


@_fault("queue three quarters full: engines that hold, one request each", "GatewayQueueFilling")
async def queue_filling(stage: Stage) -> AsyncIterator[None]:
    async with (
        _mood(stage, Mood(hold=asyncio.Event())),
        stage.gateway("--queue-limit", "8", "--max-inflight", "1") as gateway,
        clients(gateway.address, 8),
    ):
        yield


@_fault("queue full", "GatewayQueueFull")
async def queue_full(stage: Stage) -> AsyncIterator[None]:
    async with (
        _mood(stage, Mood(hold=asyncio.Event())),
        stage.gateway("--queue-limit", "8", "--max-inflight", "1") as gateway,
        clients(gateway.address, 14),
    ):
        yield


@_fault("a gateway killed", "GatewayDown")
async def gateway_killed(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway() as gateway:
        await gateway.kill()
        yield


@_fault("all targets removed from Prometheus", "GatewayMissing")
async def targets_gone(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway():
        stage.forget_all()
        try:
            yield
        finally:
            stage.remember()


@_fault("streams cut in the middle", "GatewayAnswersFailing")
async def streams_cut(stage: Stage) -> AsyncIterator[None]:
    async with (
        _mood(stage, Mood(cut=True)),
        stage.gateway("--breaker-failures", "0", "--breaker-rate", "0") as gateway,
        clients(gateway.address, 4),
    ):
        yield


@_fault("engines that answer 503, and a retry budget of 0", "GatewayRetriesDenied")
async def retries_denied(stage: Stage) -> AsyncIterator[None]:
    async with (
        _mood(stage, Mood(fail=1.0, status=503)),
        stage.gateway("--retry-budget", "0", "--retry-burst", "0", "--breaker-failures", "0") as gateway,
        clients(gateway.address, 4),
    ):
        yield


@_fault("a caller above its rate limit", "GatewayLimitsRefuseMany")
async def caller_runs_wild(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway("--rate-limit-rps", "1") as gateway, clients(gateway.address, 2):
        yield


@_fault("more connections than allowed", "GatewayConnectionsRefused")
async def connections_refused(stage: Stage) -> AsyncIterator[None]:
    async with (
        stage.gateway("--max-connections", "4") as gateway,  # Prometheus already has its connection
        clients(gateway.address, 8),
    ):
        yield


@_fault("a log reader that does not read", "GatewayLogLinesLost")
async def log_unread(stage: Stage) -> AsyncIterator[None]:
    async with (
        stage.gateway("--log-prompts", stdout=asyncio.subprocess.PIPE) as gateway,
        clients(gateway.address, 8, words=2_000),
    ):
        yield


@_fault("64 file descriptors, most of them in use", "GatewayFilesShort")
async def files_short(stage: Stage) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(stage.gateway(files=64))
        host, _, port = gateway.address.rpartition(":")
        for _ in range(34):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
        yield


@_fault("a keys file that becomes invalid", "GatewayReloadFailed")
async def keys_broken(stage: Stage) -> AsyncIterator[None]:
    keys = stage.files / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "ops"\nsha256 = "{"0" * 64}"\n')
    async with stage.gateway("--api-keys-file", str(keys), "--no-metrics-key"):
        keys.write_text("[[keys]")
        yield


@_fault("a certificate that is valid for one day", "GatewayCertificateExpiring")
async def certificate_ends(stage: Stage) -> AsyncIterator[None]:
    cert, key = stage.files / "cert.pem", stage.files / "key.pem"
    words = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    made = await asyncio.create_subprocess_exec(
        *words,
        "-keyout",
        key,
        "-out",
        cert,
        "-subj",
        "/CN=gateway",
        "-days",
        "1",
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    async with stage.gateway("--backend-cert", str(cert), "--backend-key", str(key)):
        yield


@_fault("stopped for 0.7 s again and again, as without CPU time", "GatewayLoopLagging")
async def loop_lags(stage: Stage) -> AsyncIterator[None]:
    async def starve() -> None:
        while True:
            gateway.send(signal.SIGSTOP)
            await asyncio.sleep(0.7)
            gateway.send(signal.SIGCONT)
            await asyncio.sleep(0.6)  # long enough to be scraped

    async with stage.gateway() as gateway:
        starving = asyncio.create_task(starve())
        try:
            yield
        finally:
            starving.cancel()
            await asyncio.gather(starving, return_exceptions=True)


@_fault("killed and restarted again and again", "GatewayRestarting")
async def restarting(stage: Stage) -> AsyncIterator[None]:
    async with stage.gateway() as first, AsyncExitStack() as stack:
        port = first.address.rpartition(":")[2]

        async def restart() -> None:
            process = first
            while True:
                began = time.time()
                await process.kill()
                process = await stack.enter_async_context(stage.gateway("--port", port, scraped=False))
                new = f'gateway_start_time_seconds{{instance="{first.address}"}} > {began}'
                await stage.prometheus.until_data(new, seconds=10)

        restarting = asyncio.create_task(restart())
        try:
            yield
        finally:
            restarting.cancel()
            await asyncio.gather(restarting, return_exceptions=True)

"""The wiring: which object is given which, and the order in which they start and stop. It holds no logic of a
request. Tests run the gateway in their own event loop by `running`."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from proxy.access import (
    Origins,
    PriorityPolicy,
    TrustedProxies,
    access_policy_for,
    caller_for_address,
    revocation,
    scope_of,
)
from proxy.access.denylist import ingest_for
from proxy.access.ratelimit import Admission, admission_for, limits_any
from proxy.config import PRIORITIES, Settings, secrets_in
from proxy.config.file_watch import Contents, FileWatch
from proxy.errors import place_of, words_of
from proxy.flights import (
    PATIENCE,
    ExchangeContext,
    Flight,
    FlightGroup,
    Keyer,
    Kind,
    Memory,
    Scheduler,
    Shapes,
    StreamLimits,
    Timeouts,
    Watchdog,
    hash_of_cpu,
    memory_for,
)
from proxy.flights.continuing import Continuations
from proxy.flights.embeddings import Embedder, closing, embedder_for
from proxy.flights.fleet import Host, Node
from proxy.flights.queue import RequestQueue, TicketFactory, callers_of, twin_of
from proxy.flights.resuming import ResumingMetrics, Streams
from proxy.redis import (
    REASONS,
    Cache,
    Change,
    Deployment,
    RedisState,
    ResponseAffinity,
    Use,
    WireError,
    deployment_of,
)
from proxy.resources import EngineReload, FileReloads, Naming, Prepared, paths_of, prepare
from proxy.server import (
    ApiDocument,
    Flush,
    Gateway,
    LargeRequests,
    Listener,
    Page,
    Sources,
    Times,
    Tracing,
    descriptor_budget,
    host_of,
    hosts_of,
    in_use,
    limit,
    listen,
    listen_for_operators,
    state_gauges,
)
from proxy.telemetry import (
    FLUSH_SECONDS,
    PREFIX,
    Audit,
    Certificates,
    Containment,
    Log,
    Metrics,
    Otel,
    Recording,
    Totals,
    certificates,
)
from proxy.upstream import (
    MOST,
    Backends,
    Budget,
    Discovery,
    Fleet,
    Pulse,
    RetryRules,
    Task,
    affinity,
    each,
    first_look,
    watch,
)
from proxy.upstream.http import tls_context
from proxy.workers import Member, OwnEngines, SharedAdmission

_SHARED: Final = "an eviction or a restart there gives callers one burst more; --state-redis separates the two"


LIMITS_MB: Final = 32
"""Memory of the embedded Redis of limits: some 80,000 callers that were active within the time of their bursts.
When it is full, each worker enforces its part of the limits."""
ENGINE_LIMITS: Final = "engine limits"
"""What gateways share with `--admission fleet`, as the start lines say it."""

_SERVER: Final[dict[Change, str]] = {
    "away": "redis server away",
    "back": "redis server back",
    "added": "redis server added",
    "removed": "redis server removed",
}


@dataclass(slots=True)
class App:
    """A running gateway."""

    host: str
    port: int
    engines: list[str]
    redis: str  # embedded, yours or off; or its state at the start, where that is bad
    group: FlightGroup
    memory: Memory
    scheduler: Scheduler
    backends: Backends
    cache: Cache | None
    metrics: Metrics
    scheme: str
    reload: Callable[[], Awaitable[None]]
    """Reload, as on SIGHUP, what can change at run time. The future is done when the reload is."""
    watchdog: Watchdog
    shapes: Shapes
    leave: Callable[[], Awaitable[None]]
    """Accept no connection, and wait until the clients have left: another process has this one's place."""
    busy: Callable[[], int]
    """Requests that are being answered."""
    admission: Admission | None = None  # None: no limits
    embedder: Embedder | None = None  # None: embeddings are passed on as they are
    large: LargeRequests | None = None  # requests decoded in another process
    routes: Sequence[tuple[str, str]] = ()  # (path, method) of the gateway's own endpoints
    admin_url: str = ""  # of the operators' listener; empty: none
    shares: list[str] = field(default_factory=list)  # with other gateways

    @property
    def url(self) -> str:
        if not self.port:  # a Unix socket, whose path may be relative
            return f"unix://{self.host}"
        return f"{self.scheme}://{host_of(self.host)}:{self.port}"


@asynccontextmanager
async def running(
    settings: Settings, log: Log, reread: Callable[[], Settings] | None = None, member: Member | None = None
) -> AsyncIterator[App]:
    """Start all parts in order, and stop them in reverse at the end. Raises SettingsError before it binds.

    `reread` reads the settings again; with it, and a settings file, the file is watched. `member`: this is one of
    several workers.
    """
    if member is not None:
        settings = member.part_of(settings)
    loop = asyncio.get_running_loop()
    tls = _tls(settings, log)
    contents = Contents(paths_of(settings))  # before the files are loaded: a change meanwhile is noticed
    prepared = prepare(settings)
    for warning in prepared.warnings:
        log.event("warning", "settings", detail=warning)
    async with AsyncExitStack() as stack:
        tracing = _tracing(settings, log, stack)
        if member is None:
            urls, redis_url, redis_words = await children(settings, log, stack)
        else:
            hello = member.hello
            urls, redis_url, redis_words = list(settings.backends) or hello.engines, hello.redis, hello.redis_words
        if member is not None and settings.cache_salt == "auto":
            prepared.rules.renew_salt(member.hello.salt)
        if settings.cache_salt != "auto":
            log.hide([prepared.rules.salt.decode()])
        log.hide([prepared.backend_key, *secrets_in(redis_url or ""), *secrets_in(settings.state_redis)])
        metrics = Metrics()
        containment = _containment(log)
        memory = memory_for(settings, metrics, log, loop, prepared.rules.identity.name_of)
        redis = None if redis_url is None else await _deployment("redis", redis_url, settings, log, metrics, stack)
        redis_state = RedisState(redis_words, redis)
        cache = await _cache(redis, settings, log, metrics, stack, redis_state)
        pulse = Pulse(loop)
        pulse.start()
        stack.callback(pulse.close)
        fleet = Fleet(
            [url for url in urls if not url.startswith("dns+")],
            settings,
            tls=tls,
            api_key=prepared.backend_key,
            log=log,
            metrics=metrics,
            loop=loop,
            pulse=pulse,
        )
        stack.callback(fleet.close)
        stack.push_async_callback(fleet.checkup.close)
        stack.push_async_callback(fleet.health_checks.close)
        discovery = Discovery(
            urls, change=fleet.change, answers=fleet.answers, log=log, metrics=metrics, clock=loop.time
        )
        backends = fleet.backends
        shapes = Shapes(
            backends, probe=settings.probe == "on", pulse=pulse, log=log, metrics=metrics, clock=loop.time
        )
        fleet.on_news(shapes.wake)
        group = FlightGroup(memory, shapes.waits, loop)
        audit = Audit(log, metrics)
        access_policy = access_policy_for(settings, prepared.rules, metrics, log, audit)
        priority_policy = PriorityPolicy(PRIORITIES.index(settings.top_priority), prepared.rules.identity.address)
        large = LargeRequests(
            settings,
            prepared.rules,
            access_policy,
            log,
            scope=scope_of(access_policy),
            owner=lambda call: priority_policy.fairness_key(call.caller, call.request),
        )
        stack.push_async_callback(large.close)
        ticket_factory = TicketFactory(backends.pool_of, settings.rate_limit_assumed_tokens)
        request_queue = _request_queue(settings, ticket_factory)
        limits = _stream_limits(settings)
        continuations = Continuations(loop.call_later, loop.time, keep_alive=settings.keepalive_seconds)
        stack.callback(continuations.close)
        exchange_context = ExchangeContext(
            backends=backends,
            timeouts=Timeouts(limits, loop, containment, pulse.lost),
            metrics=metrics,
            later=loop.call_later,
            fault=containment,
            retry=_retry_rules(settings),
            budget=Budget(settings.retry_budget / 100, settings.retry_burst),
            resume=settings.resume != "off",
            ids=settings.resume == "ids",
            hand_over=settings.hand_over_seconds,
            continuations=continuations,
            ingest=ingest_for(settings, prepared.rules, metrics, log, large.denied),
        )
        streams: Streams | None = None
        scheduler = Scheduler(
            exchange_context,
            group=group,
            request_queue=request_queue,
            cache=cache,
            loop=loop,
            merge_max=1 if settings.deny_answers else settings.merge_max,  # one denied sample would end all
            fleet=partial(
                _node,
                settings,
                redis if settings.redis != "auto" or member is not None else None,
                cache,
                group,
                exchange_context,
                shapes.waits,
                log,
                loop,
                lambda flight: None if streams is None else streams.lost(flight),
                lambda name: None if streams is None else streams.dropped(name),
            ),
            on_complete=ticket_factory.landed,
            on_unknown_shape=shapes.passed,
            on_taken_over=lambda flight: None if streams is None else streams.continued(flight),
        )
        alone = member is None or member.hello.workers == 1 or scheduler.fleet is not None
        streams = _streams(settings, group, scheduler, backends, metrics, loop) if alone else None
        # Where no other process uses the embedded Redis, shared limits would cost a round trip and share nothing.
        shared_redis = None if settings.redis == "auto" and member is None else redis
        limits_state, other_state = redis_state, None
        if settings.state_redis:
            shared_redis = await _deployment("state_redis", settings.state_redis, settings, log, metrics, stack)
            limits_state = other_state = RedisState("yours", shared_redis)
        limits_redis = shared_redis
        if member is not None and member.hello.limits_redis is not None:
            limits_redis = await _deployment("limits", member.hello.limits_redis, settings, log, metrics, stack)
            limits_state = other_state = RedisState("embedded", limits_redis)
        admission = await admission_for(
            settings,
            limits_redis,
            metrics,
            log,
            stack,
            identify=lambda request: caller_for_address(prepared.rules.identity.address(request)),
            keyed=prepared.rules.identity.ring is not None,
            parts=1 if member is None else member.hello.workers,
        )
        if admission is not None and admission.limiter.shared is not None:
            limits_state.watch("rate limits", admission.limiter.shared.availability)
            if other_state is None:
                log.event("info", "limits share the redis of answers", detail=_SHARED)
        response_affinity = ResponseAffinity(
            shared_redis, timeout=settings.redis_timeout_ms / 1000, namespace=settings.redis_namespace
        )
        stack.push_async_callback(response_affinity.close)
        keyer = Keyer(hash_of_cpu())
        embedder = embedder_for(
            settings,
            scheduler.submit,
            group=group,
            backends=backends,
            cache=cache,
            keyer=keyer,
            metrics=metrics,
            memory=memory,
            promote=scheduler.promote,
            refused=scheduler.metrics.refused,
            on_fault=containment,
        )
        end_all = closing(embedder, scheduler.close)

        async def close() -> None:
            if streams is not None:
                streams.cut()
            await end_all()

        origins = Origins(settings.cors_origins)
        if scheduler.fleet is not None:
            await scheduler.fleet.start()
            stack.push_async_callback(scheduler.fleet.stop)  # after the flights have ended
        if streams is not None:
            stack.callback(streams.close)  # after the flights have ended, too
        gateway = Gateway(
            settings=settings,
            group=group,
            scheduler=scheduler,
            backends=backends,
            keyer=keyer,
            metrics=metrics,
            log=log,
            affinity=affinity(settings.routing),
            admission=admission,
            access_policy=access_policy,
            priority_policy=priority_policy,
            embedder=embedder,
            tracing=tracing,
            fault=containment,
            memory=memory,
            large=large,
            response_affinity=response_affinity,
            origins=origins,
            hosts=None if settings.listen_unix else await hosts_of(settings.host, settings.allowed_hosts),
            admin_hosts=await hosts_of(settings.admin_host, settings.allowed_hosts),
            unfolded=shapes.unfolded,
            recording=_recording(settings, log, metrics, stack, member),
            render=None if member is None else member.render,
            rules=prepared.rules,
            health_checks=fleet.health_checks,
            streams=streams,
        )
        await discovery.begin()
        shares = [] if scheduler.fleet is None else ["generations"]
        if member is not None:
            stack.push_async_callback(member.close)
            member.attach(
                engines=lambda: fleet.engines,
                queues=request_queue.summary,
                serving=backends.serving,
                charge=request_queue.charge,
                room=backends.capacity_changed,
                hear=backends.hear,
                metrics=metrics,
            )
            backends.share(given_back=member.given_back, wanted=member.wanted, tell=member.tell, step=member.step)
        elif settings.admission == "fleet" and shared_redis is not None:
            shares.append(ENGINE_LIMITS)
            shared = shared_admission(settings, shared_redis, log, loop, stack)
            for name, doc, value in shared.gauges():
                metrics.gauge(name, doc, value)
            backends.divide()
            await shared.start(
                OwnEngines(
                    lambda: fleet.engines,
                    queues=request_queue.summary,
                    serving=backends.serving,
                    room=lambda: backends.capacity_changed(),
                    fixed=settings.max_inflight > 0,
                )
            )
        await first_look(fleet.health_checks)
        naming = Naming(prepared.rules, backends, large.renew, log)
        naming.begin(settings, strict=member is None or member.hello.first)
        reload = (
            EngineReload(settings, reread, discovery.change, log, naming.renew)
            if reread is not None and settings.config
            else None
        )
        expiries = _certificates(prepared, metrics, log)
        files = _files(
            FileReloads(
                settings=settings,
                live=prepared,
                fleet=fleet,
                access_policy=access_policy,
                large=large,
                certificates=expiries,
                redis=[
                    (url, one)
                    for url, one in ((settings.redis, redis), (settings.state_redis, shared_redis))
                    if one
                ],
                reload=reload,
                hide=log.hide,
            ),
            contents,
            audit,
        )
        watchdog = _watchdog(settings, scheduler, embedder, log, containment, loop)
        tasks: list[Task] = [
            ("the watchdog", watchdog.run),
            ("the file watch", files.run),
            ("the certificate check", partial(each, certificates.EVERY, expiries.look)),
            ("the discovery of engines", discovery.run),
        ]
        if settings.probe == "on":
            tasks.append(("the probes of engines", shapes.run))
        if reload is not None:
            tasks.append(("the reload of engines", reload.run))
        if access_policy is not None:
            tasks.append(("the check for expired keys", partial(each, revocation.EVERY, access_policy.keyed.look)))
        watch(settings, backends, fleet.health_checks, tasks, loop, log, containment, stack)
        stack.push_async_callback(close)
        budget = descriptor_budget(
            limit(),
            in_use(),
            clients=settings.max_connections,
            engines=len(urls),
            inflight=settings.max_inflight or MOST,
        )
        if budget.warning:
            log.event("warning", "settings", detail=budget.warning)
        listener = _listener(gateway, origins, settings, budget.clients, metrics, log)
        stack.callback(metrics.watch_loop(loop))
        stack.callback(metrics.watch_collector())
        sockets, admin_sockets = member.sockets() if member is not None else ([], [])
        operators = await listen_for_operators(gateway, settings, prepared.tls, log, stack, admin_sockets)
        ApiDocument(gateway, admission, settings)
        rules = prepared.rules
        Flush(gateway, group, cache, audit, lambda call: rules.identity.address(call.request), rules)
        listening = await listen(
            listener,
            gateway,
            close,
            settings,
            prepared.tls,
            log,
            stack,
            budget,
            sockets,
            (lambda: 0) if streams is None else lambda: streams.abandoned,
        )
        if settings.page:
            sources = Sources(
                settings=settings,
                metrics=metrics,
                group=group,
                queue=request_queue,
                resumable=streams if streams is not None else (),
                backends=backends,
                cache=cache,
                redis=redis_state,
                state_redis=other_state,
                began=loop.time(),
                clock=loop.time,
                totals=None if member is None else partial(_totals, member, metrics),
            )
            stack.callback(
                Page(gateway, sources, access_policy, audit, prepared.rules.identity.address).close
            )  # before the drain
        state_gauges(metrics, group, request_queue, listener, log, cache)
        yield App(
            host=listening.host,
            port=listening.port,
            leave=listening.leave,
            busy=lambda: listener.busy,
            engines=[backend.name for backend in backends.all],
            redis=redis_state.line,
            group=group,
            memory=memory,
            scheduler=scheduler,
            backends=backends,
            cache=cache,
            metrics=metrics,
            scheme="https" if prepared.tls is not None else "http",
            reload=files.wake,
            watchdog=watchdog,
            shapes=shapes,
            admission=admission,
            embedder=embedder,
            large=large,
            routes=gateway.routes.listed,
            admin_url=operators,
            shares=shares,
        )


def shared_admission(
    settings: Settings, redis: Deployment, log: Log, loop: asyncio.AbstractEventLoop, stack: AsyncExitStack
) -> SharedAdmission:
    """The limits of engines that gateways share, not started yet."""
    shared = SharedAdmission(
        redis,
        timeout=settings.redis_timeout_ms / 1000,
        namespace=settings.redis_namespace,
        log=log,
        clock=loop.time,
    )
    stack.push_async_callback(shared.close)
    return shared


async def supervised_admission(
    settings: Settings, redis: str | None, log: Log, stack: AsyncExitStack
) -> SharedAdmission | None:
    """The same for all workers of this gateway. `redis`: the URL of the answers' Redis."""
    setting, url = ("state_redis", settings.state_redis) if settings.state_redis else ("redis", redis)
    if settings.admission == "local" or url is None:
        return None
    deployment = await _deployment(setting, url, settings, log, None, stack)
    return shared_admission(settings, deployment, log, asyncio.get_running_loop(), stack)


async def _totals(member: Member, metrics: Metrics) -> Totals:
    return Totals(await member.families(metrics), PREFIX)


# -- parts ----------------------------------------------------------------------------------------------


def _tracing(settings: Settings, log: Log, stack: AsyncExitStack) -> Tracing | None:
    if settings.trace != "otlp":
        return None
    otel = Otel(log)
    stack.push_async_callback(otel.close, min(FLUSH_SECONDS, max(0.2, settings.drain_timeout)))
    return Tracing(otel, prompts=settings.log_prompts)


def _containment(log: Log) -> Containment:
    return Containment(
        lambda where, e: log.often("error", "internal error", where, fault=words_of(e), where=_at(where, e))
    )


def _request_queue(settings: Settings, ticket_factory: TicketFactory) -> RequestQueue[Flight]:
    return RequestQueue(
        limit=settings.queue_limit,
        max_batch=settings.max_batch,
        window=settings.batch_window_ms / 1000,
        patience=settings.queue_patience,
        timeout=settings.queue_timeout or math.inf,
        ticket=ticket_factory,
        twin=twin_of,
        callers=callers_of,
    )


def _stream_limits(settings: Settings) -> StreamLimits:
    return StreamLimits(
        first_token=settings.first_token_timeout,
        token=settings.token_timeout,
        total=settings.total_timeout,
        frame=settings.max_frame_bytes,
        flight=settings.max_flight_bytes,
    )


def _listener(
    gateway: Gateway, origins: Origins, settings: Settings, max_connections: int, metrics: Metrics, log: Log
) -> Listener:
    return Listener(
        gateway.handle,
        max_connections=max_connections,
        max_header=settings.max_header_bytes,
        max_headers=settings.max_headers,
        max_head=settings.max_head_bytes,
        proxies=TrustedProxies(settings.trusted_proxies) if settings.proxy_protocol else None,
        times=Times(
            head=settings.head_timeout,
            stall=settings.client_stall_timeout or math.inf,
            idle=settings.idle_timeout,
        ),
        origins=origins,
        on_refused=metrics.connection_refused,
        on_unreadable=lambda peer, why: log.often("info", "unreadable request", peer, client=peer, detail=why),
    )


async def _deployment(
    setting: str, url: str, settings: Settings, log: Log, metrics: Metrics | None, stack: AsyncExitStack
) -> Deployment:
    """The Redis of a setting, with its servers found. `metrics`: None in a supervisor: its workers have them."""

    def told(change: Change, server: str, detail: str) -> None:
        level = "warning" if change == "away" else "info"
        log.often(level, _SERVER[change], server, server=server, detail=detail)

    deployment = deployment_of(
        url, timeout=settings.redis_timeout_ms / 1000, namespace=settings.redis_namespace, on_server=told
    )
    if deployment.sharded and metrics is not None:
        metrics.gauge(
            "redis_servers_away",
            "Masters of a Redis Cluster that are away, by setting.",
            lambda: len(deployment.troubles),
            {"redis": setting},
        )
    stack.push_async_callback(deployment.close)
    await deployment.start()
    return deployment


async def _cache(
    redis: str | Deployment | None,
    settings: Settings,
    log: Log,
    metrics: Metrics,
    stack: AsyncExitStack,
    state: RedisState,
) -> Cache | None:
    if redis is None:
        return None

    def told(use: Use, trouble: WireError | None) -> None:
        if trouble is None:
            log.event("info", "redis back", use=use)
        else:
            log.event("warning", "redis refuses" if trouble.reason else "redis away", use=use, detail=str(trouble))

    opened = False

    def breaker(trouble: WireError | None) -> None:
        nonlocal opened
        if opened is (trouble is None):
            opened = not opened
            metrics.cache_breaker(opened)
        told("look-ups", trouble)

    cache = Cache(
        redis,
        timeout=settings.redis_timeout_ms / 1000,
        ttl=settings.cache_ttl_seconds,
        max_entry=settings.cache_max_entry_bytes,
        max_pending=settings.cache_max_pending_bytes,
        namespace=settings.redis_namespace,
        record=metrics.cache,
        on_breaker=breaker,
        on_stores=partial(told, "stores"),
    )
    state.watch("look-ups", cache.availability)
    state.watch("stores", cache.accepts)
    for reason in REASONS:
        metrics.gauge(
            "redis_refusing",
            "1 while Redis refuses what it is asked, by its error code; ERR: any other.",
            lambda reason=reason: int(state.refuses(reason)),  # type: ignore[misc]
            {"reason": reason},
        )
    await cache.start()
    stack.push_async_callback(cache.stop)
    await cache.ping()
    return cache


def _tls(settings: Settings, log: Log) -> ssl.SSLContext | None:
    """The context for all https:// engines, made once: reading the system's certificates takes milliseconds."""
    custom = settings.backend_ca or settings.backend_cert or settings.backend_key
    if not custom and not any(url.startswith(("https:", "dns+https:")) for url in settings.backends):
        return None
    context = tls_context(
        ca=settings.backend_ca,
        cert=settings.backend_cert,
        key=settings.backend_key,
        insecure=settings.backend_insecure,
    )
    if settings.backend_insecure:
        log.event("warning", "settings", detail="backend_insecure: certificates of engines are not verified")
    return context


def _certificates(prepared: Prepared, metrics: Metrics, log: Log) -> Certificates:
    """The certificates in use at the start."""
    certificates = Certificates(metrics, log)
    if prepared.tls is not None:
        certificates.renew("tls_cert", prepared.tls_expires)
    if prepared.backend_cert_expires:
        certificates.renew("backend_cert", prepared.backend_cert_expires)
    if prepared.redis_cert_expires:
        certificates.renew("redis", prepared.redis_cert_expires)
    return certificates


def _recording(
    settings: Settings, log: Log, metrics: Metrics, stack: AsyncExitStack, member: Member | None
) -> Recording | None:
    """Each worker has a file of its own. Raises SettingsError for one that cannot be written."""
    if not settings.record_file:
        return None
    recording = Recording(
        settings.record_file if member is None else f"{settings.record_file}-worker{member.hello.index}",
        whole=settings.record_prompts == "whole",
        max_bytes=settings.record_max_bytes,
        files=settings.record_files,
        tell=lambda text: log.often("error", "request not recorded", text, detail=text),
    )
    stack.callback(recording.close)
    metrics.counter("recorded_requests_total", "Requests written to the recording.", lambda: recording.written)
    metrics.counter(
        "recording_dropped_total",
        "Requests not recorded: the disk was slow or full.",
        lambda: recording.dropped,
    )
    return recording


def _files(reloads: FileReloads, contents: Contents, audit: Audit) -> FileWatch:
    watched = reloads.watched()
    for file in watched:
        audit.watches(file.name)
    return FileWatch(watched, contents, audit)


def _watchdog(
    settings: Settings,
    scheduler: Scheduler,
    embedder: Embedder | None,
    log: Log,
    containment: Containment,
    loop: asyncio.AbstractEventLoop,
) -> Watchdog:
    def healed(kind: Kind, what: str) -> None:
        scheduler.metrics.healed(kind)
        log.event("error", "watchdog healed", what=kind, detail=what)

    return Watchdog(
        lambda: scheduler.strays(lambda flight: embedder is not None and flight in embedder),
        clock=loop.time,
        on_healed=healed,
        fault=containment,
        patience=max(PATIENCE, 2 * settings.redis_timeout_ms / 1000),
    )


def _streams(
    settings: Settings,
    group: FlightGroup,
    scheduler: Scheduler,
    backends: Backends,
    metrics: Metrics,
    loop: asyncio.AbstractEventLoop,
) -> Streams | None:
    """The streams that clients may come back to; None: none."""
    if not settings.resume_grace_seconds_max:
        return None
    streams = Streams(
        most=settings.resume_streams_max,
        longest=settings.resume_grace_seconds_max,
        group=group,
        feeds=scheduler,
        metrics=ResumingMetrics(metrics.registry),
        loop=loop,
        places=lambda model: sum(engine.max_inflight for engine in backends.candidates(model)),
    )
    metrics.gauge("resumable_streams", "Streams kept for clients that may come back.", lambda: len(streams))
    metrics.gauge("resumable_bytes", "Bytes of their logs.", lambda: streams.size)
    return streams


def _node(
    settings: Settings,
    redis: Deployment | None,
    cache: Cache | None,
    group: FlightGroup,
    exchange_context: ExchangeContext,
    folds: Callable[[Flight], bool],
    log: Log,
    loop: asyncio.AbstractEventLoop,
    on_lost: Callable[[Flight], None],
    on_drop: Callable[[bytes], None],
    host: Host,
) -> Node | None:
    """This process in the fleet. None: it shares no Redis, or nothing may be stored there. `on_lost` is called
    with each flight whose gateway is lost, `on_drop` with the hashed name of a deleted stream."""
    if settings.fleet == "off":
        return None
    if redis is None or cache is None or settings.cache_ttl_seconds == 0:
        if settings.cache_ttl_seconds == 0:
            why = "answers are not stored (--cache-ttl-seconds 0)"
        elif cache is None:
            why = "there is no Redis" + " (--redis off)" * (settings.redis == "off")
        else:
            why = "no other process has its Redis"
        log.event("warning", "fleet off", detail=why)
        return None

    def changed(trouble: WireError | None) -> None:
        if trouble is None:
            log.event("info", "fleet back", node=name)
        else:
            log.event("warning", "fleet away", node=name, detail=str(trouble))

    def lost(flight: Flight, leader: str) -> None:
        log.often("warning", "fleet flight lost", leader, leader=leader, request_id=flight.spec.request_id)
        on_lost(flight)

    node = Node(
        host,
        cache=cache,
        deployment=redis,
        group=group,
        exchange_context=exchange_context,
        loop=loop,
        fault=exchange_context.fault,
        timeout=settings.redis_timeout_ms / 1000,
        longest_wait=settings.queue_timeout or math.inf,
        folds=folds,
        on_change=changed,
        on_foreign=lambda error: log.often("warning", "fleet key refused", detail=str(error)),
        on_lost=lost,
        on_drop=on_drop,
    )
    name = node.name.decode()
    metrics = exchange_context.metrics
    metrics.gauge("fleet_live", "1 while all workers share generations with other gateways.", lambda: node.live)
    metrics.gauge("fleet_following", "Flights that another gateway feeds.", lambda: node.following)
    metrics.gauge(
        "fleet_publishing",
        "Flights that are in Redis, for other gateways or clients that come back.",
        lambda: node.publishing,
    )
    metrics.counter("fleet_led_total", "Flights that this process claimed.", lambda: node.led)
    log.event("info", "fleet", node=name)
    return node


def _retry_rules(settings: Settings) -> RetryRules:
    return RetryRules(
        retries=settings.retries,
        on=frozenset(settings.retry_on.split(",")),
        backoff=settings.retry_backoff_ms / 1000,
        longest=settings.retry_max_wait,
    )


def _at(where: str, e: BaseException) -> str:
    place = place_of(e)
    return f"{where} ({place})" if place else where


async def redis_of_limits(settings: Settings, log: Log, stack: AsyncExitStack, *, keyed: bool) -> str | None:
    """Start an embedded Redis for the limits that workers share, beside the embedded one of answers: that evicts
    meters too, after 5 to 60 MB of answers within a second. None without limits, where they have a Redis of their
    own, or where it does not start. `keyed`: callers may bring limits."""
    from proxy.embedded.redis import EmbeddedRedis
    from proxy.embedded.supervise import ChildFailed

    if settings.state_redis or not limits_any(settings, keyed=keyed):
        return None
    redis = EmbeddedRedis(
        LIMITS_MB,
        lambda event, detail: log.event("info", f"embedded redis of limits {event}", detail=detail),
        evicts=False,
    )
    stack.push_async_callback(redis.stop)
    try:
        return await redis.start()
    except ChildFailed as e:
        log.event("warning", "limits share the embedded redis of answers", detail=str(e))
        return None


async def children(settings: Settings, log: Log, stack: AsyncExitStack) -> tuple[list[str], str | None, str]:
    """Start the embedded engine and the embedded Redis, where the settings ask for them, in parallel. The engines'
    URLs, Redis' URL, and what it is in words. Where no Redis is installed, or it does not start: a warning, and
    none."""
    # Imported here: with an external engine and Redis they cost no start-up time.
    from proxy.embedded.engine import EmbeddedEngine
    from proxy.embedded.redis import EmbeddedRedis, NotInstalled
    from proxy.embedded.supervise import ChildFailed

    def reporter(name: str) -> Callable[[str, str], None]:
        return lambda event, detail: log.event("info", f"{name} {event}", detail=detail)

    engine = None if settings.backends else EmbeddedEngine(on_event=reporter("embedded engine"))
    redis = (
        EmbeddedRedis(settings.redis_memory_mb, on_event=reporter("embedded redis"))
        if settings.redis == "auto"
        else None
    )
    for child in (engine, redis):
        if child is not None:
            stack.push_async_callback(child.stop)
    starts = [child.start() for child in (engine, redis) if child is not None]
    started = await asyncio.gather(*starts, return_exceptions=True)
    without_redis = settings.redis == "off"
    if redis is not None and isinstance(started[-1], NotInstalled | ChildFailed):
        log.event("warning", "no redis", detail=str(started.pop()))
        without_redis = True
    for result in started:
        if isinstance(result, BaseException):
            raise result
    results = [str(result) for result in started]
    urls = list(settings.backends) or [results.pop(0)]
    if without_redis:
        return urls, None, "off"
    return (
        urls,
        (results.pop() if redis is not None else settings.redis),
        "embedded" if redis is not None else "yours",
    )

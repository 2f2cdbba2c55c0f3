"""The running gateway: settings in, the event loop, signals, messages on the terminal, the exit code.
`__main__` starts it."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Final, Self

import uvloop

from proxy.app import ENGINE_LIMITS, App, children, redis_of_limits, running, supervised_admission
from proxy.config import Settings, exposed, load, settings_as_toml, shown_address
from proxy.errors import ListenError, StartError
from proxy.resources import prepare
from proxy.server import raise_limit
from proxy.telemetry import Faults, Log
from proxy.terminal import SAY_SECONDS, STDERR, say
from proxy.workers import CHANNEL, CannotStart, LogRelay, Member, Parts, Ready, Supervisor, bind

ENDS: Final = (signal.SIGTERM, signal.SIGINT)
STDOUT: Final = 1
COLLECT: Final = (10_000, 20, 20)
"""Of the garbage collector. With Python's own, 700 and 10 and 10, 64 clients cause a collection every 50
requests, which finds nothing."""

SAMPLE: Final = """curl -iN {url}/v1/chat/completions -H 'content-type: application/json'{key} \\
  -d '{{"model": "{model}", "stream": true, "temperature": 0,
       "messages": [{{"role": "user", "content": "Name three colours."}}]}}'"""


class Signals:
    """A context manager that handles signals for the task that entered it. The first SIGTERM or SIGINT sets
    `stop`; the second cancels the task, and so does the first one during start-up."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._reload: Callable[[], object] | None = None
        self._task: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"<Signals {'stopping' if self.stop.is_set() else 'running' if self._reload else 'starting'}>"

    def running(self, reload: Callable[[], object]) -> None:
        """Start-up is complete: end gracefully from now on, and call `reload` on SIGHUP."""
        self._reload = reload

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in ENDS:
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in (*ENDS, signal.SIGHUP):
            loop.remove_signal_handler(number)
        for number in (*ENDS, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the rest takes milliseconds

    def _end(self) -> None:
        if (self._reload is None or self.stop.is_set()) and self._task is not None:
            self._task.cancel()
        self.stop.set()

    def _hang_up(self) -> None:
        if self._reload is not None and not self.stop.is_set():
            self._reload()


async def serve(settings: Settings, log: Log, faults: Faults, channel: int | None = None) -> None:
    """Run until SIGTERM or SIGINT; a second one does not wait for requests to finish. `channel`: this is a worker,
    and its supervisor is at the other end of that descriptor."""
    asyncio.get_running_loop().set_exception_handler(faults.of_loop)
    with Signals() as signals:
        try:
            member = await Member.join(channel) if channel is not None else None
            async with running(settings, log, lambda: load(sys.argv[1:], os.environ), member) as app:
                settle_collector()
                signals.running(app.reload)
                if member is None:
                    _greet(_ready(app), settings)
                    await signals.stop.wait()
                else:
                    member.ready(_ready(app))
                    await _serve_place(app, member, signals)
                log.event("info", "stopping", event="audit", who="signal", flights=len(app.group))
                if member is None and (busy := app.busy()):
                    _say_how_long(f"{busy} request{'s' * (busy != 1)}", settings)
        except asyncio.CancelledError:
            log.event("warning", "stopped at once")


async def _serve_place(app: App, member: Member, signals: Signals) -> None:
    """Serve until this worker is told to end, another one has its place, or the supervisor is gone."""
    stop = asyncio.ensure_future(signals.stop.wait())
    ends = [stop, asyncio.ensure_future(member.left.wait()), asyncio.ensure_future(member.orphan.wait())]
    leaving = None
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if member.left.is_set() and not signals.stop.is_set():
            leaving = asyncio.ensure_future(app.leave())
            await asyncio.wait({stop, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*ends, *([leaving] if leaving is not None else [])):
            task.cancel()


async def supervise(settings: Settings, log: Log, faults: Faults, relay: LogRelay, workers: int) -> None:
    """Keep so many workers until SIGTERM or SIGINT. SIGHUP reloads in all of them, SIGUSR2 replaces them one by
    one. Raises CannotStart."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(faults.of_loop)
    with Signals() as signals:
        async with AsyncExitStack() as stack:
            identity = prepare(settings).rules.identity  # its errors come before anything is bound
            sockets = bind(settings, workers, stack.enter_context(ExitStack()))
            engines, redis, redis_words = await children(settings, log, stack)
            limits_redis = None
            if redis_words == "embedded":
                limits_redis = await redis_of_limits(settings, log, stack, keyed=identity.ring is not None)
            shared = await supervised_admission(settings, redis, log, stack)
            supervisor = Supervisor(
                Parts(
                    sockets=sockets,
                    engines=engines,
                    redis=redis,
                    redis_words=redis_words,
                    limits_redis=limits_redis,
                    arguments=sys.argv[1:],
                    drain=settings.drain_delay + settings.drain_timeout,
                    delay=settings.drain_delay,
                    log_pipe=relay.pipe,
                    close=os.close,
                    shared=shared is not None,
                    fixed=settings.max_inflight > 0,
                    families=shared.families if shared is not None else list,
                ),
                log,
            )
            stack.push_async_callback(supervisor.close)
            if shared is not None:
                await shared.start(supervisor)
            try:
                ready = await supervisor.start()
                if shared is not None:
                    ready.shares.append(ENGINE_LIMITS)
                _greet(ready, settings)
                signals.running(supervisor.reload)
                loop.add_signal_handler(signal.SIGUSR2, supervisor.replace)
                await signals.stop.wait()
                log.event("info", "stopping", event="audit", who="signal")
                _say_how_long("the requests under way", settings)
                await supervisor.stop()
            except asyncio.CancelledError:
                log.event("warning", "stopped at once")
                await supervisor.stop_now()


def settle_collector() -> None:
    """Exclude the objects that live as long as the process from garbage collection, and collect seldom. Requests
    leave no reference cycles (`tests/system/test_garbage.py`), so the collector has little to do after this."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)


def _ready(app: App) -> Ready:
    return Ready(
        models=[str(model["id"]) for model in app.backends.models()],
        engines=app.engines,
        answers=app.backends.ready,
        unlisted=next((f"{b.name}{b.detail}" for b in app.backends.all if b.up and b.detail), ""),
        redis=app.redis,
        url=app.url,
        admin_url=app.admin_url,
        shares=app.shares,
    )


def _greet(ready: Ready, settings: Settings) -> None:
    unix = ready.url.removeprefix("unix://") if ready.url.startswith("unix:") else ""
    where = f"--unix-socket {unix} http://gateway" if unix else ready.url
    key = " -H 'authorization: Bearer KEY'" if settings.api_keys_file else ""
    shares = f"  fleet:   {' and '.join(ready.shares)} shared with other gateways\n" if ready.shares else ""
    sample = SAMPLE.format(url=where, key=key, model=ready.models[0] if ready.models else "MODEL")
    redis = ready.redis
    if settings.redis not in ("auto", "off"):
        redis = shown_address(settings.redis) + (f"  {redis}" if redis != "yours" else "")
    say(
        f"gateway at {ready.url}\n"
        f"  engines: {', '.join(ready.engines)}{'' if ready.answers else '  (none answers yet)'}\n"
        f"  models:  {', '.join(ready.models) or ready.unlisted or 'not known yet'}\n"
        f"  redis:   {redis}\n"
        f"{shares}"
        f"{f'  operators: {ready.admin_url}' + chr(10) if ready.admin_url else ''}"
        f"\n{sample}\n\n"
    )


def _say_how_long(requests: str, settings: Settings) -> None:
    """Tell whoever has pressed Ctrl-C on a terminal why the program goes on."""
    seconds = settings.drain_delay + settings.drain_timeout
    if seconds and os.isatty(STDERR):
        say(f"finishing {requests}, up to {seconds:g} s (Ctrl-C again: stop now)\n")


def start(settings: Settings) -> int:
    """Run the gateway to its end. Returns the exit code. Raises SettingsError for a file that cannot be used."""
    channel = os.environ.pop(CHANNEL, "")
    workers = settings.workers or len(os.sched_getaffinity(0))
    relay = LogRelay(STDOUT) if workers > 1 and not channel else None
    output = relay.pipe() if relay is not None else STDOUT
    log = Log(output, settings.log_format, settings.log_level)
    faults = Faults(log)
    raise_limit()
    try:
        faults.install()
        if not channel:
            for warning in (*settings.warnings, *exposed(settings, sys.argv[1:])):
                log.event("warning", "settings", detail=warning)
        if relay is not None:
            asyncio.run(supervise(settings, log, faults, relay, workers))
        else:
            uvloop.run(serve(settings, log, faults, int(channel) if channel else None))
    except CannotStart as e:
        return e.code if e.code > 0 else 1
    except ConnectionError:
        return 1  # a worker whose supervisor is gone
    except ListenError as e:
        say(f"proxy: cannot listen on {_listens(settings, e)}\n", wait=SAY_SECONDS)
        return 2
    except StartError as e:
        say(f"proxy: cannot start: {e}\n", wait=SAY_SECONDS)
        return 1  # a supervisor may try again, which it must not with 2
    except OSError as e:
        what = f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}"
        say(f"proxy: cannot start: {what}\n", wait=SAY_SECONDS)
        return 2
    finally:
        faults.close()
        log.close()
        if relay is not None:
            os.close(output)
            relay.join(SAY_SECONDS)
    return 0


def _listens(settings: Settings, e: ListenError) -> str:
    """Where it could not listen, why, and what to do."""
    if e.port == "port" and settings.listen_unix:
        return f"{settings.listen_unix}: {e}"
    public = e.port == "port"
    host, port = (settings.host, settings.port) if public else (settings.admin_host, settings.admin_port)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    why = str(e).partition(" (")[0]
    if why == os.strerror(errno.EADDRINUSE):
        todo = f"stop the program that listens there, or choose another --{e.port.replace('_', '-')}"
    elif why == os.strerror(errno.EACCES):
        todo = "ports below 1024 are for root and for programs with CAP_NET_BIND_SERVICE"
    else:
        todo = f"--{'host' if public else 'admin-host'} must be an address or a name of this machine"
    return f"{where}: {e}; {todo}"


def check(settings: Settings) -> tuple[str, list[str]]:
    """All settings in TOML, and warnings. The files that settings name are read too. Raises SettingsError."""
    prepared = prepare(settings)
    expiries = (
        ("tls_cert", prepared.tls_expires),
        ("backend_cert", prepared.backend_cert_expires),
        ("redis ssl_certfile", prepared.redis_cert_expires),
    )
    now = time.time()
    expired = [f"{name}: the certificate expired on {_day(at)}" for name, at in expiries if 0 < at < now]
    return settings_as_toml(settings), [*settings.warnings, *prepared.warnings, *expired]


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def print_checked(settings: Settings) -> int:
    text, warnings = check(settings)
    for warning in (*warnings, *exposed(settings, sys.argv[1:])):
        sys.stderr.write(f"proxy: warning: {warning}\n")
    sys.stdout.write(text)
    return 0

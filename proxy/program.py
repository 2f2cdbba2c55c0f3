"""The running gateway: settings in, the event loop, signals, messages on the terminal, the exit code.
`__main__` starts it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import uvloop

from proxy.app import App, running
from proxy.config import Settings, exposed, load, settings_as_toml
from proxy.errors import ListenError, StartError
from proxy.resources import prepare
from proxy.server import raise_limit
from proxy.telemetry import Faults, Log
from proxy.terminal import SAY_SECONDS, say

ENDS: Final = (signal.SIGTERM, signal.SIGINT)
STDOUT: Final = 1

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


async def serve(settings: Settings, log: Log, faults: Faults) -> None:
    """Run until SIGTERM or SIGINT; a second one does not wait for requests to finish."""
    asyncio.get_running_loop().set_exception_handler(faults.of_loop)
    with Signals() as signals:
        try:
            async with running(settings, log, lambda: load(sys.argv[1:], os.environ)) as app:
                settle_collector()
                _greet(app, settings)
                signals.running(app.reload)
                await signals.stop.wait()
                log.event("info", "stopping", event="audit", who="signal", flights=len(app.group))
        except asyncio.CancelledError:
            log.event("warning", "stopped at once")


def settle_collector() -> None:
    """Exclude the objects that live as long as the process from garbage collection. Requests leave no reference
    cycles (`tests/system/test_garbage.py`), so the collector has little to do after this."""
    gc.collect()
    gc.freeze()


def _greet(app: App, settings: Settings) -> None:
    models = [str(model["id"]) for model in app.backends.models()]
    unix = app.url.removeprefix("unix://") if app.url.startswith("unix:") else ""
    where = f"--unix-socket {unix} http://gateway" if unix else app.url
    key = " -H 'authorization: Bearer KEY'" if settings.api_keys_file else ""
    sample = SAMPLE.format(url=where, key=key, model=models[0] if models else "MODEL")
    say(
        f"gateway at {app.url}\n"
        f"  engines: {', '.join(app.engines)}{'' if app.backends.ready else '  (none answers yet)'}\n"
        f"  models:  {', '.join(models) or 'not known yet'}\n"
        f"  redis:   {app.redis}\n"
        f"{f'  operators: {app.admin_url}' + chr(10) if app.admin_url else ''}"
        f"\n{sample}\n\n"
    )


def start(settings: Settings) -> int:
    """Run the gateway to its end. Returns the exit code. Raises SettingsError for a file that cannot be used."""
    log = Log(STDOUT, settings.log_format, settings.log_level)
    faults = Faults(log)
    raise_limit()
    try:
        faults.install()
        for warning in (*settings.warnings, *exposed(settings, sys.argv[1:])):
            log.event("warning", "settings", detail=warning)
        uvloop.run(serve(settings, log, faults))
    except ListenError as e:
        where = settings.listen_unix or f"{settings.host}:{settings.port}"
        say(f"proxy: cannot listen on {where}: {e}\n", wait=SAY_SECONDS)
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
    return 0


def check(settings: Settings) -> tuple[str, list[str]]:
    """All settings in TOML, and warnings. The files that settings name are read too. Raises SettingsError."""
    prepared = prepare(settings)
    return settings_as_toml(settings), [*settings.warnings, *prepared.warnings]


def print_checked(settings: Settings) -> int:
    text, warnings = check(settings)
    for warning in (*warnings, *exposed(settings, sys.argv[1:])):
        sys.stderr.write(f"proxy: warning: {warning}\n")
    sys.stdout.write(text)
    return 0

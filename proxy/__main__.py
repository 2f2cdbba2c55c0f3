"""Owns the program: settings in, the loop, signals, the words on the terminal, the exit code.
Must not know how anything works.
Called as `python -m proxy`."""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # before the imports below, which are most of the start
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if "--check-config" not in sys.argv:
        for _number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(_number, lambda *_: os._exit(0))  # nothing is started yet

import asyncio
import gc
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import msgspec
import uvloop

from proxy.app import App, running
from proxy.config import Settings, exposed, load, options, shown_url
from proxy.errors import ListenError, SettingsError
from proxy.resources import prepare
from proxy.server import raise_limit
from proxy.telemetry import Faults, Log, run, say

ENDS: Final = (signal.SIGTERM, signal.SIGINT)
STDOUT: Final = 1
SAY_SECONDS: Final = 1.0  # for what ends the program to be read

SAMPLE = """curl -N {url}/v1/chat/completions -H 'content-type: application/json'{key} \\
  -d '{{"model": "{model}", "stream": true, "temperature": 0, \
       "messages": [{{"role": "user", "content": "Name three colours."}}]}}'"""


class Signals:
    """While it is entered, signals are taken for the task that entered it. `stop` is set by the first that ends;
    the second cancels the task, and so does the first while nothing runs that could end well."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._reload: Callable[[], object] | None = None
        self._task: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"<Signals {'stopping' if self.stop.is_set() else 'running' if self._reload else 'starting'}>"

    def running(self, reload: Callable[[], object]) -> None:
        """From now on there is something to end well, and to read again."""
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
            signal.signal(number, signal.SIG_IGN)  # what is left takes milliseconds: nobody need interrupt it

    def _end(self) -> None:
        if (self._reload is None or self.stop.is_set()) and self._task is not None:
            self._task.cancel()
        self.stop.set()

    def _hang_up(self) -> None:
        if self._reload is not None and not self.stop.is_set():
            self._reload()


async def serve(settings: Settings, log: Log, faults: Faults) -> None:
    """Run until SIGTERM or SIGINT; a second one does not wait for requests to end."""
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
    """What lives as long as the process is not looked through again. Requests leave no circles behind
    (`tests/system/test_garbage.py`), so the collector has hardly anything to do after this."""
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


def main() -> int:
    try:
        settings = load(sys.argv[1:], os.environ)
        if "--check-config" in sys.argv[1:]:
            return _check(settings)
    except SettingsError as e:
        return _refuse(e)
    log = Log(STDOUT, settings.log_format, settings.log_level)
    faults = Faults(log)
    raise_limit()
    try:
        faults.install()
        for warning in (*settings.warnings, *exposed(settings, sys.argv[1:])):
            log.event("warning", "settings", detail=warning)
        uvloop.run(serve(settings, log, faults))
    except SettingsError as e:
        return _refuse(e)
    except ListenError as e:
        where = settings.listen_unix or f"{settings.host}:{settings.port}"
        say(f"proxy: cannot listen on {where}: {e}\n", wait=SAY_SECONDS)
        return 2
    except OSError as e:
        what = f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}"
        say(f"proxy: cannot start: {what}\n", wait=SAY_SECONDS)
        return 2
    finally:
        faults.close()
        log.close()
    return 0


def check(settings: Settings) -> tuple[str, list[str]]:
    """Every setting as a line of TOML, and warnings. What the settings name is read too: keys, deny list,
    certificates. Raises SettingsError."""
    prepared = prepare(settings)
    lines = []
    for option in options():
        value = getattr(settings, option.name)
        if option.metavar == "URL":
            value = [shown_url(url) for url in value] if isinstance(value, tuple) else shown_url(value)
        shown = msgspec.json.encode(list(value) if isinstance(value, tuple) else value).decode()
        if option.hidden and value:
            lines.append(f"# {option.name} is set, and not shown")
        else:
            lines.append(f"{option.name} = {shown}")
    return "\n".join(lines) + "\n", [*settings.warnings, *prepared.warnings]


def _check(settings: Settings) -> int:
    text, warnings = check(settings)
    for warning in (*warnings, *exposed(settings, sys.argv[1:])):
        print(f"proxy: warning: {warning}", file=sys.stderr)
    print(text, end="")
    return 0


def _refuse(e: SettingsError) -> int:
    say("".join(f"proxy: {line}\n" for line in str(e).splitlines()), wait=SAY_SECONDS)
    return 2


if __name__ == "__main__":
    sys.exit(run("proxy", main))

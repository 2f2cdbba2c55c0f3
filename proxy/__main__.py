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
from typing import Final

import uvloop

from proxy.app import App, running
from proxy.check import check
from proxy.config.load import exposed, load
from proxy.config.settings import Settings
from proxy.errors import ListenError, SettingsError
from proxy.server.listener.descriptors import raise_limit
from proxy.signals import Signals
from proxy.telemetry.faults import Faults
from proxy.telemetry.log import Log
from proxy.telemetry.streams import run
from proxy.telemetry.terminal import say

STDOUT: Final = 1
SAY_SECONDS: Final = 1.0  # for what ends the program to be read

SAMPLE = """curl -N {url}/v1/chat/completions -H 'content-type: application/json'{key} \\
  -d '{{"model": "{model}", "stream": true, "temperature": 0, \
       "messages": [{{"role": "user", "content": "Name three colours."}}]}}'"""


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
    (`tests/test_garbage.py`), so the collector has hardly anything to do after this."""
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

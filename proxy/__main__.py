"""Owns the program: settings in, the loop, signals, the words on the terminal, the exit code.
Must not know how anything works.
Called as `python -m proxy`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys

import uvloop

from proxy.app import App, running
from proxy.config import Settings
from proxy.config_load import load
from proxy.errors import SettingsError
from proxy.log import Log

SAMPLE = """curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\
  -d '{{"model": "{model}", "stream": true, "temperature": 0, \
       "messages": [{{"role": "user", "content": "Name three colours."}}]}}'"""


async def serve(settings: Settings, log: Log) -> None:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, log, lambda: load(sys.argv[1:], os.environ)) as app:
        if app.reload is not None:
            loop.add_signal_handler(signal.SIGHUP, app.reload.wake)
        settle_collector()
        _greet(app)
        await stop.wait()
        log.event("info", "stopping", flights=len(app.group))


def settle_collector() -> None:
    """What lives as long as the process is not looked through again. Requests leave no circles behind
    (`tests/test_garbage.py`), so the collector has hardly anything to do after this."""
    gc.collect()
    gc.freeze()


def _greet(app: App) -> None:
    models = [str(model["id"]) for model in app.backends.models()]
    sample = SAMPLE.format(url=app.url, model=models[0] if models else "MODEL")
    print(
        f"gateway at {app.url}\n"
        f"  engines: {', '.join(app.engines)}{'' if app.backends.ready else '  (none answers yet)'}\n"
        f"  models:  {', '.join(models) or 'not known yet'}\n"
        f"  redis:   {app.redis}\n\n{sample}\n",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    try:
        settings = load(sys.argv[1:], os.environ)
    except SettingsError as e:
        return _refuse(e)
    log = Log(sys.stdout.fileno(), settings.log_format, settings.log_level)
    try:
        for warning in settings.warnings:
            log.event("warning", "settings", detail=warning)
        uvloop.run(serve(settings, log))
    except SettingsError as e:
        return _refuse(e)
    except OSError as e:
        print(f"proxy: cannot listen on {settings.host}:{settings.port}: {e.strerror or e}", file=sys.stderr)
        return 2
    finally:
        log.close()
    return 0


def _refuse(e: SettingsError) -> int:
    for line in str(e).splitlines():
        print(f"proxy: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""The program's own words and exit codes, in one process: what it greets with, refuses and warns of."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy import __main__ as entry
from proxy import program as module
from proxy import terminal
from proxy.app import App
from proxy.config.settings import Settings
from proxy.errors import ListenError, SettingsError, StartError
from proxy.program import Signals as RealSignals
from proxy.telemetry.faults import Faults
from proxy.telemetry.log import Log

program: Any = module  # its own imports are replaced here


class Words:
    """In the place of the terminal and of the log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[tuple[str, float]] = []
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.closed: list[str] = []
        for place in (program, terminal):
            monkeypatch.setattr(place, "say", lambda text, wait=0.0: self.said.append((text, wait)))
        monkeypatch.setattr(program, "Log", lambda *given: self.log(given))
        monkeypatch.setattr(program, "Faults", lambda log: self.faults())
        monkeypatch.setattr(program, "raise_limit", lambda: self.closed.append("raised"))

    def log(self, given: tuple[object, ...]) -> SimpleNamespace:
        self.given = given
        return SimpleNamespace(event=self.event, close=lambda: self.closed.append("log"))

    def faults(self) -> SimpleNamespace:
        return SimpleNamespace(
            install=lambda: self.closed.append("installed"),
            close=lambda: self.closed.append("faults"),
            of_loop=lambda loop, context: None,
        )

    def event(self, level: str, msg: str, **more: Any) -> None:
        self.events.append((level, msg, more))


def app_of(**changes: Any) -> App:
    bare = {
        "url": "http://h:1",
        "engines": ["http://a", "http://b"],
        "redis": "off",
        "admin_url": "",
        "backends": SimpleNamespace(models=lambda: [{"id": "m1"}, {"id": 2}], ready=True, all=[]),
        "group": [1, 2, 3],
        "reload": None,
        "busy": lambda: 0,
        "shares": [],
    }
    return cast(App, SimpleNamespace(**bare | changes))


def test_it_says_where_it_is_and_how_to_ask_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(monkeypatch)
    program._greet(program._ready(app_of()), Settings())
    ((text, wait),) = words.said
    assert wait == 0.0
    assert text.startswith(
        "gateway at http://h:1\n  engines: http://a, http://b\n  models:  m1, 2\n  redis:   off\n\n"
    )
    assert "curl -iN http://h:1/v1/chat/completions" in text
    assert '"model": "m1"' in text
    assert "authorization" not in text
    assert "operators" not in text


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://h", "redis://h"),
        ("rediss://user:pass%40@h:6380/1?ssl_ca_certs=/ca.pem", "rediss://h:6380/1"),
        ("unix://:pass@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis+sentinel://u:pass@a:1,b/main/0?sentinel_password=pass", "redis+sentinel://a:1,b/main/0"),
        ("rediss+cluster://:pass@[::1]:7,b?x=pass", "rediss+cluster://[::1]:7,b"),
        ("redis://u:pass/x@h", "redis://***"),
    ],
)
@pytest.mark.parametrize("state", ["yours", "away (look-ups: no connection)"])
def test_a_redis_of_the_operator_is_named_without_its_login(
    url: str, place: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Words(monkeypatch)
    program._greet(program._ready(app_of(redis=state)), Settings(redis=url))
    ((text, _),) = words.said
    assert f"  redis:   {place}{'' if state == 'yours' else '  ' + state}\n" in text
    assert "pass" not in text


def test_what_is_not_known_or_is_set_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(monkeypatch)
    away = SimpleNamespace(models=list, ready=False, all=[])
    shares = ["generations", "engine limits"]
    app = app_of(url="unix:///run/s", admin_url="http://o:2", backends=away, shares=shares)
    program._greet(program._ready(app), Settings(api_keys_file="keys.toml"))
    ((text, _),) = words.said
    assert "engines: http://a, http://b  (none answers yet)\n" in text
    assert "models:  not known yet\n" in text
    assert (
        "  fleet:   generations and engine limits shared with other gateways\n  operators: http://o:2\n\n" in text
    )
    assert "curl -iN --unix-socket /run/s http://gateway/v1/chat/completions" in text
    assert "-H 'authorization: Bearer KEY'" in text
    assert '"model": "MODEL"' in text


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, None),
        (SettingsError("one\ntwo"), 2, "proxy: one\nproxy: two\n"),
        (
            ListenError("Address already in use"),
            2,
            "proxy: cannot listen on 127.0.0.1:8080: Address already in use; stop the program that listens there,"
            " or choose another --port\n",
        ),
        (OSError(13, "Permission denied", "/x"), 2, "proxy: cannot start: Permission denied: /x\n"),
        (OSError(24, "Too many open files"), 2, "proxy: cannot start: Too many open files\n"),
        (OSError("odd"), 2, "proxy: cannot start: odd\n"),
        (StartError("the engine ended"), 1, "proxy: cannot start: the engine ended\n"),
    ],
)
def test_how_it_ends_is_its_exit_code_and_its_last_words(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, code: int, said: str | None
) -> None:
    words = Words(monkeypatch)

    def run(coroutine: Any) -> None:
        coroutine.close()
        if error is not None:
            raise error

    monkeypatch.setattr(program.uvloop, "run", run)
    monkeypatch.setattr(sys, "argv", ["proxy", "--log-level", "debug", "--backend-api-key", "k"])
    monkeypatch.setattr(program.os, "environ", {"GATEWAY_XYZZY": "1"})
    assert entry.main() == code
    assert words.said == ([(said, terminal.SAY_SECONDS)] if said is not None else [])
    assert words.closed == ["raised", "installed", "faults", "log"]
    assert words.given == (1, "json", "debug")
    assert [(level, msg) for level, msg, _ in words.events] == [("warning", "settings")] * 2
    assert "GATEWAY_XYZZY" in words.events[0][2]["detail"]
    assert "--backend-api-key" in words.events[1][2]["detail"]


@pytest.mark.parametrize(
    ("argv", "error", "said"),
    [
        (["--listen-unix", "/run/s"], ListenError("x"), "/run/s: x"),
        (
            ["--port", "80"],
            ListenError("Permission denied"),
            "127.0.0.1:80: Permission denied; ports below 1024 are for root and for programs with"
            " CAP_NET_BIND_SERVICE",
        ),
        (
            ["--host", "2001:db8::1"],
            ListenError("Cannot assign requested address"),
            "[2001:db8::1]:8080: Cannot assign requested address; --host must be an address or a name of this"
            " machine",
        ),
        (
            ["--host", "gateway.example"],
            ListenError("Name or service not known"),
            "gateway.example:8080: Name or service not known; --host must be an address or a name of this machine",
        ),
        (
            ["--admin-port", "9091", "--listen-unix", "/run/s"],
            ListenError("Address already in use (admin_port = 9091)", "admin_port"),
            "127.0.0.1:9091: Address already in use (admin_port = 9091); stop the program that listens there, or"
            " choose another --admin-port",
        ),
        (
            ["--admin-port", "9091", "--admin-host", "192.0.2.1"],
            ListenError("Cannot assign requested address (admin_port = 9091)", "admin_port"),
            "192.0.2.1:9091: Cannot assign requested address (admin_port = 9091); --admin-host must be an address"
            " or a name of this machine",
        ),
    ],
)
def test_where_it_cannot_listen_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], error: ListenError, said: str
) -> None:
    words = Words(monkeypatch)

    def run(coroutine: Any) -> None:
        coroutine.close()
        raise error

    monkeypatch.setattr(program.uvloop, "run", run)
    monkeypatch.setattr(sys, "argv", ["proxy", *argv])
    monkeypatch.setattr(program.os, "environ", {})
    assert entry.main() == 2
    assert words.said[0][0] == f"proxy: cannot listen on {said}\n"


def test_wrong_settings_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["proxy", "--port", "x"])
    monkeypatch.setattr(program.os, "environ", {})
    assert entry.main() == 2
    ((text, wait),) = words.said
    assert text.startswith("proxy: flag --port = 'x': must be")
    assert (wait, words.closed) == (terminal.SAY_SECONDS, [])


def test_settings_that_are_only_checked_are_printed_with_their_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = Words(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["proxy", "--check-config", "--backend-api-key", "k"])
    monkeypatch.setattr(program.os, "environ", {"GATEWAY_XYZZY": "1"})
    assert entry.main() == 0
    out, err = capsys.readouterr()
    assert out.startswith("# All settings, as a file for --config. Secrets are left out ")
    assert "\nhost = " in out
    assert out.endswith("\n")
    assert not out.endswith("\n\n")
    assert [line[:24] for line in err.splitlines()] == ["proxy: warning: environm", "proxy: warning: flag --b"]
    assert (words.said, words.closed) == ([], [])


@pytest.mark.parametrize(
    ("cut", "terminal", "busy", "settings", "told"),
    [
        (False, True, 2, Settings(), "finishing 2 requests, up to 25 s (Ctrl-C again: stop now)\n"),
        (
            True,
            True,
            1,
            Settings(drain_delay=5.0, drain_timeout=2.5),
            "finishing 1 request, up to 7.5 s (Ctrl-C again: stop now)\n",
        ),
        (False, True, 0, Settings(), None),
        (False, False, 2, Settings(), None),
        (False, True, 2, Settings(drain_timeout=0.0), None),
        (True, False, 0, Settings(), None),
    ],
)
async def test_it_serves_until_it_is_told_to_stop_and_says_on_a_terminal_how_long_that_takes(
    monkeypatch: pytest.MonkeyPatch, cut: bool, terminal: bool, busy: int, settings: Settings, told: str | None
) -> None:
    monkeypatch.setattr(program.os, "isatty", lambda fd: terminal)
    words = Words(monkeypatch)
    ended: list[str] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    made: list[Any] = []

    class Signals(RealSignals):
        def running(self, reload: Any) -> None:
            super().running(reload)
            made.append(reload)
            self._end()
            if cut:
                self._end()

    @asynccontextmanager
    async def running(settings: Settings, log: Log, reread: Any, member: None) -> AsyncIterator[App]:
        assert reread() == Settings()
        try:
            yield app_of(reload="reload", busy=lambda: busy)
        finally:
            ended.append("ended")
            await asyncio.sleep(0)  # a second signal cuts this short

    monkeypatch.setattr(program, "Signals", Signals)
    monkeypatch.setattr(program, "running", running)
    monkeypatch.setattr(program, "settle_collector", lambda: ended.append("settled"))
    monkeypatch.setattr(sys, "argv", ["proxy"])
    monkeypatch.setattr(program.os, "environ", {})
    loop = asyncio.get_running_loop()
    faults = words.faults()
    try:
        await program.serve(settings, cast(Log, words.log(())), cast(Faults, faults))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert loop.get_exception_handler() is faults.of_loop
    loop.set_exception_handler(None)
    assert (ended, made) == (["settled", "ended"], ["reload"])
    assert [text for text, _ in words.said[1:]] == ([told] if told else [])
    assert (
        words.events
        == [
            ("info", "stopping", {"event": "audit", "who": "signal", "flights": 3}),
            ("warning", "stopped at once", {}),
        ][: 1 + cut]
    )
    task = asyncio.current_task()
    assert task is not None
    while task.cancelling():
        task.uncancel()


def test_what_lives_long_is_kept_from_the_collector() -> None:
    gc.unfreeze()
    before = gc.get_threshold()
    try:
        program.settle_collector()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == program.COLLECT
    finally:
        gc.set_threshold(*before)

"""Owns a Gateway without engines, sockets or a queue: what it launches is kept, and a test feeds it.
Must not know what a test checks.
Called by tests of the gateway's own decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict

from proxy.access.priority import PriorityPolicy
from proxy.config.settings import Settings
from proxy.config.vocabulary import NORMAL
from proxy.flights.flight import Flight
from proxy.flights.group import FlightGroup
from proxy.flights.key import Keyer
from proxy.server.context import RequestContext
from proxy.server.gateway import Gateway
from proxy.server.listener.request import Request
from proxy.server.respond import Sent
from proxy.telemetry.log import RequestRecord
from proxy.telemetry.metrics import Metrics
from tests.proxy.server.test_respond_streams import Client

CHAT = "/v1/chat/completions"
BODY = b'{"model": "m1", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}'
STREAM = BODY[:-1] + b', "stream": true}'


class Asked(Client):
    """A request with a body that came with its head."""

    def __init__(self, path: str = CHAT, body: bytes = BODY, method: str = "POST", **headers: str) -> None:
        super().__init__(method)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers = CIMultiDict({"content-type": "application/json"} | given)
        self.raw_headers = tuple((name.encode(), value.encode()) for name, value in self.headers.items())
        self.path = self.raw_path = path
        self.host = "localhost"
        self.remote = "10.0.0.1"
        self.content_length = len(body)
        self.body: bytes | None = body
        self.body_exists = bool(body)
        self.content = SimpleNamespace(
            is_eof=lambda: True,
            exception=lambda: None,
            _size=len(body),
            _buffer=[body] if body else [],
            _buffer_offset=0,
            read_nowait=lambda: body,
        ) if body else EMPTY_PAYLOAD  # fmt: skip
        self.task = SimpleNamespace(uncancel=lambda: 0, done=lambda: False, cancel=lambda: None)
        self.stalled = False


class Stage:
    """The gateway, and all that it told others. `flights` are those it launched."""

    def __init__(self, settings: Settings | None = None, **parts: Any) -> None:
        self.flights: list[Flight] = []
        self.told: list[tuple[Any, ...]] = []
        self.records: list[RequestRecord] = []
        self.group = FlightGroup()
        self.metrics = Metrics()
        self.scheduler: Any = SimpleNamespace(
            submit=self.flights.append,
            abandon=lambda flight: self.told.append(("abandoned", flight)),
            promote=lambda *facts: self.told.append(("promoted", *facts)),
            metrics=SimpleNamespace(missed=lambda phase: self.told.append(("missed", phase))),
        )
        self.backends = SimpleNamespace(
            ready=True, models=lambda: [{"id": "m1"}], listed={None}, lists=lambda model: True, all=[]
        )
        log = SimpleNamespace(
            request=lambda record, who=None: self.records.append(record),
            often=lambda *facts, **more: self.told.append((*facts, more)),
        )
        given: dict[str, Any] = {
            "settings": settings or Settings(),
            "group": self.group,
            "scheduler": self.scheduler,
            "backends": self.backends,
            "keyer": Keyer(),
            "metrics": self.metrics,
            "log": log,
            "priority_policy": PriorityPolicy(NORMAL, lambda request: cast(Request, request).remote or ""),
            "fault": lambda where, error: self.told.append((where, error)),
        }
        self.gateway = Gateway(**(given | parts))

    def handle(self, asked: Asked, *, admin: bool = False) -> asyncio.Task[bool]:
        return asyncio.ensure_future(self.gateway.handle(cast(Request, asked), admin))

    async def answered(self, asked: Asked, *, admin: bool = False) -> bool:
        """A request that no Flight answers."""
        return await self.gateway.handle(cast(Request, asked), admin)

    def answers(self, answer: Callable[[RequestContext], Any]) -> None:
        """Every request is answered so."""

        async def handler(call: RequestContext) -> Sent:
            found = answer(call)
            if isinstance(found, BaseException):
                raise found
            if asyncio.iscoroutine(found):
                await found
            return Sent(200, True, 1)

        self.gateway.routes.posted.clear()
        self.gateway.routes.find = lambda context: handler  # type: ignore[method-assign]

    def end(self) -> None:
        """Nothing is left behind."""
        for flight in tuple(self.group.live):
            if not flight.ended:
                flight.cancel()
            self.group.remove(flight)


def refused(error: BaseException) -> Callable[[RequestContext], BaseException]:
    return lambda call: error

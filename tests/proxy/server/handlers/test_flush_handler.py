"""The flush as a handler: one at a time, what it answers, and the audit line that each one leaves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.access import AccessRules, Authenticator, TrustedProxies
from proxy.config import model_names
from proxy.errors import Code, GatewayError
from proxy.flights.key import model_tag
from proxy.redis.resp import Lost
from proxy.server.handlers.flush import Flush

PATH = "/-/cache"


class House:
    def __init__(self, *, cache: bool = True) -> None:
        self.served: list[Any] = []
        self.acted: list[Any] = []
        self.hidden: list[bytes] = []
        self.replies: list[tuple[int, Any]] = []
        self.reply: Any = 7  # of Redis; an exception is raised
        self.asked: list[bytes] = []
        self.go = asyncio.Event()
        self.go.set()
        gateway: Any = SimpleNamespace(
            routes=SimpleNamespace(add_route=lambda *route: self.served.append(route)),
            responder=SimpleNamespace(reply=self.replied),
        )
        group: Any = SimpleNamespace(unpublish_all=self.hide)
        store: Any = SimpleNamespace(flush=self.flush) if cache else None
        audit: Any = SimpleNamespace(acted=lambda *words, **fields: self.acted.append((*words, fields)))
        self.rules = AccessRules(Authenticator(None, TrustedProxies(())))
        self.handler = Flush(gateway, group, store, audit, lambda call: "10.0.0.1", self.rules)

    def hide(self, begin: bytes) -> int:
        self.hidden.append(begin)
        return 3

    async def flush(self, begin: bytes) -> int:
        self.asked.append(begin)
        await self.go.wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return int(self.reply)

    async def replied(self, context: Any, status: int, answer: Any) -> str:
        self.replies.append((status, answer))
        return "sent"

    def acts(self) -> list[dict[str, Any]]:
        return [fields for *_, fields in self.acted]


def call_of(query: str = "", name: str | None = "op") -> Any:
    return SimpleNamespace(
        request=SimpleNamespace(raw_path=PATH + query),
        caller=None if name is None else SimpleNamespace(name=name),
    )


async def test_a_flush_answers_what_went_and_is_in_the_audit() -> None:
    house = House()
    assert house.served == [(PATH, "DELETE", "cache", house.handler.handle)]
    sent: object = await house.handler.handle(call_of())
    assert sent == "sent"
    told = {"object": "cache.flush", "model": None, "removed": 7, "flights": 3}
    assert house.replies == [(200, told)]
    assert (house.hidden, house.asked) == ([b""], [b""])
    fields = {"result": "good", "what": "all models", "removed": 7, "flights": 3}
    assert house.acted == [("cache flushed", "op", "10.0.0.1", fields)]


async def test_a_flush_of_one_model_and_one_without_a_store() -> None:
    house = House()
    name = "m" * 300
    await house.handler.handle(call_of(f"?model={name}", None))
    assert (house.hidden, house.asked) == ([model_tag(name)], [model_tag(name)])
    assert house.replies[0][1]["model"] == name
    assert house.acted == [
        ("cache flushed", "", "10.0.0.1", {"result": "good", "what": "m" * 256, "removed": 7, "flights": 3})
    ]
    house = House(cache=False)
    await house.handler.handle(call_of())
    assert house.replies[0][1] == {"object": "cache.flush", "model": None, "removed": 0, "flights": 3}


@pytest.mark.parametrize(
    ("error", "words"), [(Lost("it is away"), "it is away"), (TimeoutError(), "TimeoutError"), (Lost(""), "Lost")]
)
async def test_a_store_that_does_not_answer_is_a_503_and_in_the_audit(error: Exception, words: str) -> None:
    house = House()
    house.reply = error
    with pytest.raises(GatewayError, match=f"all answers \\({words}\\); send the request again") as caught:
        await house.handler.handle(call_of())
    assert (caught.value.code, caught.value.retry_after) == (Code.CACHE_UNAVAILABLE, 1)
    assert house.acts() == [{"result": "failed", "what": "all models", "removed": 0, "flights": 3}]
    house.reply = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await house.handler.handle(call_of())
    house.reply = 1
    await house.handler.handle(call_of())
    assert [fields["result"] for fields in house.acts()] == ["failed", "failed", "good"]


async def test_an_alias_is_not_flushed_and_the_error_names_its_models() -> None:
    house = House()
    house.rules.renew_names(model_names((("chat", (("a", 1.0), ("b", 1.0))),), ()))
    with pytest.raises(GatewayError, match="'chat' is an alias: name a, b"):
        await house.handler.handle(call_of("?model=chat"))
    assert (house.hidden, house.asked) == ([], [])


async def test_one_flush_at_a_time_and_one_that_is_cut_short_is_told() -> None:
    house = House()
    house.go.clear()
    first = asyncio.ensure_future(house.handler.handle(call_of()))
    await asyncio.sleep(0)
    with pytest.raises(GatewayError) as caught:
        await house.handler.handle(call_of())
    assert (caught.value.code, caught.value.retry_after) == (Code.QUEUE_FULL, 1)
    assert (len(house.asked), house.acted) == (1, [])
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    assert house.acts() == [{"result": "cut short", "what": "all models", "removed": 0, "flights": 3}]
    house.go.set()
    await house.handler.handle(call_of())


@pytest.mark.parametrize(
    ("query", "param"),
    [("?model=", "model"), ("?model=a&model=b", "model"), ("?model=a&" + "n" * 70 + "=1", "n" * 64), ("?x", "x")],
)
async def test_what_names_no_model_is_refused_by_its_name(query: str, param: str) -> None:
    house = House()
    with pytest.raises(GatewayError) as caught:
        await house.handler.handle(call_of(query))
    assert (caught.value.code, caught.value.param, house.acted) == (Code.INVALID_VALUE, param, [])

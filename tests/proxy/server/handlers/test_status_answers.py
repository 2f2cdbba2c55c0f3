"""The short answers by themselves: statuses, methods that a path takes, models that a caller sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.access import AccessRules, Authenticator, TrustedProxies
from proxy.errors import Code, GatewayError
from proxy.server.context import RequestContext
from proxy.server.handlers.status import ALLOWED, StatusHandlers
from tests.kit.clock import virtual


class Answers:
    """Keeps what is answered."""

    def __init__(self, *, ready: bool = True, access_policy: Any = None) -> None:
        self.told: list[tuple[Any, ...]] = []
        backends = SimpleNamespace(ready=ready, models=lambda: [{"id": "m1"}, {"id": "org/m2"}])
        metrics = SimpleNamespace(render=lambda accept: (accept.encode(), "kind"))
        rules = AccessRules(Authenticator(None, TrustedProxies(())))
        self.plain = StatusHandlers(
            cast(Any, backends), cast(Any, metrics), access_policy, None, cast(Any, self), rules
        )

    async def reply(self, *facts: Any) -> None:
        self.told.append(facts[1:])

    send = reply


def call_of(path: str = "/x", method: str = "GET", **headers: str) -> RequestContext:
    return RequestContext(cast(Any, SimpleNamespace(path=path, method=method, headers=headers)), "id")


@virtual
async def test_models_are_those_that_the_caller_sees() -> None:
    access_policy = SimpleNamespace(visible_models=lambda call, models: models[1:])
    for given, names in ((None, ["m1", "org/m2"]), (access_policy, ["org/m2"])):
        answers = Answers(access_policy=given)
        await answers.plain.models(call_of())
        assert answers.told == [(200, {"object": "list", "data": [{"id": name} for name in names]})]
        await answers.plain.model(call_of("/v1/models/org/m2"))
        assert answers.told[1:] == [(200, {"id": "org/m2"})]
    with pytest.raises(GatewayError, match="'m1' does not exist") as caught:
        await answers.plain.model(call_of("/v1/models/m1"))
    assert caught.value.code is Code.MODEL_NOT_FOUND


@virtual
async def test_without_an_engine_it_lives_and_serves_no_model() -> None:
    answers = Answers(ready=False)
    await answers.plain.health(call_of())
    assert answers.told == [(200, {"status": "ok"})]
    for ask in (answers.plain.models, answers.plain.model, answers.plain.ready):
        with pytest.raises(GatewayError) as caught:
            await ask(call_of("/v1/models/m1"))
        assert (caught.value.code, caught.value.retry_after) == (Code.NO_BACKEND, 1)
    ready = Answers()
    await ready.plain.ready(call_of())
    assert ready.told == [(200, {"status": "ready"})]


@virtual
async def test_another_method_is_told_which_there_are() -> None:
    answers = Answers()
    for takes, allowed in (("GET", "GET, HEAD"), ("POST", "POST")):
        asked = call_of(method="OPTIONS")
        assert answers.plain.other(asked, takes) == answers.plain.server
        assert asked.allow == allowed
        other = call_of(method="P" * 20)
        with pytest.raises(GatewayError, match=f"^/x accepts {takes}, not {'P' * 16}[.]$") as caught:
            answers.plain.other(other, takes)
        assert (caught.value.code, other.allow) == (Code.METHOD_NOT_ALLOWED, allowed)
    await answers.plain.server(asked)
    bare = call_of()
    await answers.plain.server(bare)
    assert bare.allow == ALLOWED
    assert answers.told == [
        (204, [("x-request-id", "id"), ("allow", "POST")], b""),
        (204, [("x-request-id", "id"), ("allow", ALLOWED)], b""),
    ]


@virtual
async def test_metrics_are_rendered_as_they_are_asked_for() -> None:
    answers = Answers()
    await answers.plain.metrics(call_of(accept="a/b"))
    await answers.plain.metrics(call_of())
    heads = [("content-type", "kind"), ("x-request-id", "id")]
    assert answers.told == [(200, heads, b"a/b"), (200, heads, b"")]

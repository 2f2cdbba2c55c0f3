"""Which handler answers: by path and method, for the public listener and for operators'."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from multidict import CIMultiDict

from proxy.errors import Code, GatewayError
from proxy.server.context import RequestContext
from proxy.server.handlers.status import ALLOWED, StatusHandlers
from proxy.server.routes import Routes


class FakePlain:
    """Handlers that nobody calls here."""

    async def model(self, call: RequestContext) -> None: ...
    async def server(self, call: RequestContext) -> None: ...

    def other(self, call: RequestContext, takes: str) -> str:
        return f"other than {takes}"


class FakeRequest:
    def __init__(self, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        self.method, self.path, self.headers = method, path, CIMultiDict(headers or {})


def routes(*, admin: bool) -> tuple[Routes, FakePlain]:
    plain = FakePlain()
    public: Any = {path: ("GET", path[1:], path) for path in ("/health", "/ready")}
    public["/chat"] = ("POST", "chat", "chat")
    made = Routes(public, cast(StatusHandlers, plain), None, cast(Any, "passed"), admin=admin)
    made.add_route("/metrics", "GET", "metrics", cast(Any, "metrics"))
    return made, plain


def found(
    made: Routes, method: str, path: str, *, admin: bool = False, headers: dict[str, str] | None = None
) -> Any:
    request = cast(Any, FakeRequest(method, path, headers))
    return made.find(RequestContext(request=request, id="r", admin=admin))


def test_a_path_takes_its_method_and_head_where_that_is_get() -> None:
    made, plain = routes(admin=False)
    assert found(made, "POST", "/chat") == "chat"
    assert found(made, "HEAD", "/health") == found(made, "GET", "/health") == "/health"
    assert found(made, "GET", "/metrics") == "metrics"
    assert found(made, "GET", "/v1/models/a/b") == plain.model
    assert found(made, "OPTIONS", "*") == plain.server
    assert found(made, "GET", "/chat") == "other than POST"
    assert found(made, "PUT", "/v1/anything") == "passed"


@pytest.mark.parametrize("admin", [False, True])
def test_a_path_that_takes_post_is_found_at_once_as_it_is_in_steps(admin: bool) -> None:
    made, _ = routes(admin=admin)
    assert cast(Any, made.posted) == {"/chat": ("chat", "chat")}
    request = cast(Any, FakeRequest("POST", "/chat"))
    context = RequestContext(request=request, id="r")
    assert (cast(Any, made.find(context)), context.endpoint) == ("chat", "chat")
    made.add_route("/-/readers", "POST", "readers", cast(Any, "readers"))
    assert "/-/readers" not in made.posted  # operators' paths have checks before them


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/sleep", {}, Code.NOT_FOUND),
        ("TRACE", "/chat", {}, Code.METHOD_NOT_ALLOWED),
        ("CONNECT", "/v1/x", {}, Code.METHOD_NOT_ALLOWED),
        ("GET", "/v1/realtime", {"connection": "Upgrade", "upgrade": "websocket"}, Code.UPGRADE_NOT_SUPPORTED),
    ],
)
def test_what_nobody_answers(method: str, path: str, headers: dict[str, str], code: Code) -> None:
    made, _ = routes(admin=False)
    with pytest.raises(GatewayError) as caught:
        found(made, method, path, headers=headers)
    assert caught.value.code is code


def test_operators_with_a_listener_have_their_paths_there_alone() -> None:
    made, _ = routes(admin=True)
    assert found(made, "GET", "/metrics", admin=True) == "metrics"
    assert found(made, "GET", "/health", admin=True) == found(made, "GET", "/health") == "/health"
    for admin, method, path in (
        (False, "GET", "/metrics"),
        (True, "POST", "/chat"),
        (True, "GET", "/v1/models/m"),
    ):
        with pytest.raises(GatewayError) as caught:
            found(made, method, path, admin=admin)
        assert caught.value.code is Code.NOT_FOUND
    assert set(made.listed) == {("/health", "GET"), ("/ready", "GET"), ("/chat", "POST"), ("/metrics", "GET")}


def test_what_operators_alone_may_know_of_is_asked_for_before_another_method_is_told() -> None:
    made, _ = routes(admin=False)
    entered: list[str] = []
    made._access_policy = cast(Any, SimpleNamespace(authenticate=lambda call: entered.append(call.endpoint)))
    assert found(made, "PUT", "/metrics") == "other than GET"
    assert entered == ["metrics"]
    assert found(made, "PUT", "/chat") == "other than POST"
    assert found(made, "HEAD", "/chat") == "other than POST"
    assert found(made, "HEAD", "/metrics") == "metrics"
    assert entered == ["metrics"]


def test_a_handshake_is_one_by_get_alone_and_the_endpoint_is_known_to_the_call() -> None:
    made, plain = routes(admin=False)
    headers = {"connection": "Upgrade", "upgrade": "websocket"}
    assert found(made, "POST", "/chat", headers=headers) == "chat"
    for method, path, endpoint in (
        ("OPTIONS", "*", "server"),
        ("GET", "/v1/models/m", "models"),
        ("POST", "/v1/x", "passthrough"),
        ("POST", "/chat", "chat"),
    ):
        call = RequestContext(request=cast(Any, FakeRequest(method, path)), id="r")
        made.find(call)
        assert call.endpoint == endpoint
    call = RequestContext(request=cast(Any, FakeRequest("TRACE", "/chat")), id="r")
    with pytest.raises(GatewayError):
        made.find(call)
    assert call.allow == ALLOWED
    assert plain.server is not None

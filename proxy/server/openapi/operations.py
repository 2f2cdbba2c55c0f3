"""What each endpoint takes and answers, by its label: a table for the description. Every error of the gateway is
in one of the groups below, by where in a request's way it may come."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from proxy.errors import Code
from proxy.server.openapi import answers, engine_apis
from proxy.server.page.prompt import Wanted
from proxy.wire import REQUESTS

Codes = frozenset[Code]

HEAD: Final = frozenset(
    {
        *(Code.INVALID_VALUE, Code.INVALID_HEADER, Code.ORIGIN_NOT_ALLOWED, Code.NOT_FOUND),
        *(Code.METHOD_NOT_ALLOWED, Code.HEAD_TIMEOUT, Code.HOST_NOT_ALLOWED, Code.EXPECTATION_FAILED),
        *(Code.HEADERS_TOO_LARGE, Code.UPGRADE_NOT_SUPPORTED, Code.HTTP_VERSION, Code.INTERNAL),
        *(Code.QUEUE_FULL, Code.SHUTTING_DOWN, Code.DEADLINE_EXCEEDED, Code.DEADLINE_UNMEETABLE),
    }
)
"""Of any request."""
KEY: Final = frozenset({Code.INVALID_API_KEY, Code.KEY_EXPIRED, Code.KEY_REVOKED})
"""Where the gateway has API keys."""
COMES_BACK: Final = frozenset(
    {
        *(Code.STREAM_NOT_FOUND, Code.STREAM_GONE, Code.STREAM_POSITION, Code.MODEL_NOT_FOUND),
        *(Code.CACHE_UNAVAILABLE, Code.MEMORY_FULL),
    }
)
"""Of a client that comes back to a stream."""
LIMITS: Final = frozenset({Code.RATE_LIMITED, Code.CEILING_REACHED})
BODY: Final = frozenset(
    {
        *(Code.INVALID_JSON, Code.MISSING_FIELD, Code.BODY_TIMEOUT, Code.BODY_TOO_LARGE),
        *(Code.UNSUPPORTED_MEDIA_TYPE, Code.MEMORY_FULL),
    }
)
ENGINE: Final = frozenset({Code.NO_BACKEND})
GENERATION: Final = (
    LIMITS
    | BODY
    | ENGINE
    | {
        *(Code.CONTENT_DENIED, Code.MODEL_NOT_FOUND, Code.PROMPT_TOO_LARGE, Code.QUEUE_SHARE, Code.QUEUE_TIMEOUT),
        *(Code.LOCAL_RESOURCES, Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_TRUNCATED, Code.UPSTREAM_PROTOCOL),
        *(Code.UPSTREAM_INCOMPLETE, Code.UPSTREAM_TOO_LARGE, Code.UPSTREAM_ERROR_FRAME),
        *(Code.UPSTREAM_CONNECT_TIMEOUT, Code.UPSTREAM_FIRST_TOKEN_TIMEOUT, Code.UPSTREAM_TOKEN_TIMEOUT),
        Code.UPSTREAM_TOTAL_TIMEOUT,
    }
)

EVENTS: Final = "text/event-stream"
HTML: Final = "text/html"


class Operation(Struct, frozen=True):
    """`takes`: the struct of the request's body. `answer`: that of its JSON. `also`: media types of other answers.
    `engine`: an engine's own answer, of any status, is passed on."""

    summary: str
    tag: str
    answer: type[Struct] | None = None
    takes: type[Struct] | None = None
    codes: Codes = frozenset()
    also: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()  # request headers
    headers: tuple[str, ...] = ()  # of a good answer
    query: tuple[str, ...] = ()
    engine: bool = False
    error: type[Struct] = answers.Error


_UNSHARED: Final = ("x-request-timeout", "x-gateway-priority", "x-session-id", "traceparent")
_ASKED: Final = (*_UNSHARED, "x-gateway-share", "cache-control")
_MODEL: Final = ("x-gateway-model", "x-gateway-fallback")
_SHARED: Final = ("x-gateway-cache", "age", *_MODEL)
_RESUMABLE: Final = ("x-gateway-stream", "x-gateway-resume")
_RATES: Final = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)


def _generation(summary: str, answer: type[Struct], takes: type[Struct], **more: Any) -> Operation:
    return Operation(
        summary,
        "inference",
        answer,
        takes,
        more.pop("codes", GENERATION),
        requests=(*_ASKED, *more.pop("requests", ())),
        headers=(*_SHARED, *_RATES, *more.pop("headers", ())),
        engine=True,
        **more,
    )


_EMBEDDINGS: Final = _generation(
    "Vectors of one or more inputs; cached one by one, and batched across clients.",
    answers.EmbeddingList,
    REQUESTS["embeddings"],
    headers=("x-gateway-cached-items",),
)

_KEPT: Final = GENERATION | {Code.RESPONSE_NOT_FOUND, Code.CACHE_UNAVAILABLE}


def _of_engine(summary: str, answer: type[Struct], takes: type[Struct] | None = None, **more: Any) -> Operation:
    """An operation that shares nothing: the engine answers it, and the gateway reads what it counts."""
    headers = ("x-gateway-cache", *_MODEL, *_RATES)
    return Operation(
        summary,
        more.pop("tag"),
        answer,
        takes,
        requests=(*_UNSHARED, *more.pop("requests", ())),
        headers=headers,
        engine=True,
        **more,
    )


def _of_messages(summary: str, answer: type[Struct], takes: type[Struct], **more: Any) -> Operation:
    return _of_engine(
        summary,
        answer,
        takes,
        tag="messages",
        codes=GENERATION,
        error=engine_apis.MessagesError,
        requests=("x-claude-code-session-id",),
        **more,
    )


def _of_response(summary: str, answer: type[Struct], takes: type[Struct] | None = None, **more: Any) -> Operation:
    return _of_engine(summary, answer, takes, tag="responses", codes=_KEPT, **more)


_RESPONSE: Final = "/v1/responses/{response_id}"

ENGINE_OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("/v1/messages", "POST"): _of_messages(
        "A message of Anthropic's API, as one body or as a stream of events.",
        engine_apis.MessagesAnswer,
        engine_apis.MessagesRequest,
        also=(EVENTS,),
    ),
    ("/v1/messages/count_tokens", "POST"): _of_messages(
        "The tokens of a prompt.", engine_apis.TokenCount, engine_apis.CountTokensRequest
    ),
    ("/v1/responses", "POST"): _of_response(
        "A response of OpenAI's API, as one body or as a stream of events.",
        engine_apis.Response,
        engine_apis.ResponsesRequest,
        also=(EVENTS,),
    ),
    (_RESPONSE, "GET"): _of_response(
        "A response, from the engine that keeps it.", engine_apis.Response, also=(EVENTS,), query=("stream",)
    ),
    (_RESPONSE, "DELETE"): _of_response("Delete a response.", engine_apis.DeletedResponse),
    (f"{_RESPONSE}/cancel", "POST"): _of_response("Cancel a response in the background.", engine_apis.Response),
    (f"{_RESPONSE}/input_items", "GET"): _of_response("The input of a response.", engine_apis.InputItems),
}
"""Paths that engines answer and whose requests and answers the gateway reads, by path and method."""

OPERATIONS: Final[dict[str, Operation]] = {
    "chat": _generation(
        "A chat completion, as one body or as a stream of events.",
        answers.ChatCompletion,
        REQUESTS["chat"],
        also=(EVENTS,),
        requests=("x-gateway-resume",),
        headers=_RESUMABLE,
    ),
    "completions": _generation(
        "A completion of a text, as one body or as a stream of events.",
        answers.Completion,
        REQUESTS["completions"],
        also=(EVENTS,),
        requests=("x-gateway-resume",),
        headers=_RESUMABLE,
    ),
    "embeddings": _EMBEDDINGS,
    "streams": Operation(
        "The rest of a stream whose request had `x-gateway-resume`, byte for byte, at any gateway of the fleet.",
        "inference",
        codes=LIMITS | COMES_BACK,
        also=(EVENTS,),
        requests=("last-event-id",),
        headers=_RESUMABLE,
        query=("after",),
    ),
    "models": Operation(
        "The models of all engines that the key may use.",
        "models",
        answers.ModelList,
        codes=LIMITS | ENGINE,
        headers=_RATES,
    ),
    "model": Operation(
        "One model.", "models", answers.Model, codes=ENGINE | {Code.MODEL_NOT_FOUND}, headers=_RATES
    ),
    "health": Operation("Whether the process is alive; no engine is asked.", "operation", answers.Health),
    "ready": Operation("Whether an engine answers.", "operation", answers.Ready, codes=ENGINE),
    "openapi": Operation("This description.", "operation", codes=LIMITS, also=("application/json",)),
    "docs": Operation("A page that shows this description.", "operation", also=(HTML,)),
    "metrics": Operation(
        "Metrics for Prometheus.", "operators", also=("text/plain", "application/openmetrics-text")
    ),
    "page": Operation("The page with the state and a playground.", "operators", also=(HTML,)),
    "state": Operation(
        "The state, once or as a stream of events, one a second.", "operators", answers.State, also=(EVENTS,)
    ),
    "readers": Operation(
        "The playground: one prompt, read by several readers; a stream of events.",
        "operators",
        takes=Wanted,
        codes=BODY,
        also=(EVENTS,),
    ),
    "cache": Operation(
        "Delete the stored answers of one model, or of all.",
        "operators",
        answers.Flushed,
        codes=frozenset({Code.CACHE_UNAVAILABLE}),
        query=("model",),
    ),
}
"""By the endpoint's label, as in metrics and in the log."""

BY_METHOD: Final = {
    ("streams", "DELETE"): Operation(
        "Keep a stream no longer, at any gateway; its generation ends once no client reads it.",
        "inference",
        answers.DeletedStream,
        codes=LIMITS | {Code.STREAM_NOT_FOUND, Code.CACHE_UNAVAILABLE},
    ),
}
"""Methods that differ from the others of their endpoint."""

BY_PATH: Final = {
    "/embed": Operation(
        "An alias of /v1/embeddings; with a setting, a marked stub where no engine can embed.",
        "inference",
        answers.EmbeddingList,
        _EMBEDDINGS.takes,
        GENERATION | {Code.EMBEDDINGS_UNAVAILABLE},
        requests=_EMBEDDINGS.requests,
        headers=(*_EMBEDDINGS.headers, "x-gateway-stub"),
        engine=True,
    ),
}
"""Paths that differ from the others of their endpoint."""

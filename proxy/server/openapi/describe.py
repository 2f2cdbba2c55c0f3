"""The OpenAPI 3.1 description of a listener's paths, from the structs that decode, the table of errors and the
table of operations. Pure."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any, Final

import msgspec

from proxy import __version__
from proxy.access import FORMS, MAX_TIMEOUT
from proxy.config import PRIORITIES
from proxy.errors import Code, anthropic_type
from proxy.flights import SHARES
from proxy.server.openapi import answers
from proxy.server.openapi.engine_apis import MessagesErrorObject
from proxy.server.openapi.operations import (
    BY_METHOD,
    BY_PATH,
    ENGINE_OPERATIONS,
    EVENTS,
    HEAD,
    KEY,
    OPERATIONS,
    Operation,
)
from proxy.server.page.prompt import MAX_DELAY, MAX_READERS
from proxy.server.routes import STREAM_PATH
from proxy.wire import PROMPT_FIELD, REQUESTS
from proxy.wire.event_apis import LONGEST_ID

Keyless = Container[str] | None
"""The endpoints that need no API key; None where there are no keys."""
MODEL_PATH: Final = "/v1/models/{model}"
_JSON: Final = "application/json"
_REFERENCE: Final = "#/components/schemas/{name}"
_TEXT: Final = {"type": "string"}
_ABOUT: Final = (
    "What this gateway answers itself, and what it reads of Messages and Responses, which engines answer. "
    "Requests and answers have more members: those of vLLM's API, which go to the engine and come from it "
    "unchanged. Other paths under /v1 are passed through, and the engine describes them. An error of the gateway "
    "has OpenAI's form, on Messages Anthropic's; an engine's own is passed on unchanged."
)
_MEMBERS: Final = "The members that the gateway reads. All others go to the engine, which checks them."
_OF_ENGINE: Final = {"type": "object", "description": "The engine's own error, passed on unchanged."}
_NO_WORD: Final = re.compile("[^a-z0-9]+")
_HEADERS: Final = {
    "x-request-id": "Your id for the request, a token of at most 128 characters; returned and logged.",
    "x-request-timeout": "Deadline in seconds from arrival.",
    "x-gateway-priority": "Priority class: high, normal or low.",
    "x-gateway-share": "Which identical requests share one answer: auto, all or off.",
    "cache-control": "no-cache: no stored answer. no-store: neither that, nor is the answer stored.",
    "x-session-id": "The session, for routing by hash.",
    "x-claude-code-session-id": "The same, as Claude Code sends it.",
    "traceparent": "Trace context (W3C).",
    "x-gateway-resume": "Seconds that the stream is kept for a client that leaves; `; ids` gives events ids.",
    "x-gateway-stream": "The name by which a client comes back to the stream: /v1/streams/{stream}.",
    "last-event-id": "The id of the last event that the client has; goes before `after`.",
    "x-gateway-cache": "How the answer came: miss, attached, hit, merged or bypass.",
    "x-gateway-model": "The model that answers, where the client named another one.",
    "x-gateway-fallback": "The model that no engine could serve, where another one answers.",
    "x-gateway-cached-items": "Stored inputs of all: 2/3.",
    "x-gateway-stub": "1: a stub, no vector of a model.",
    "age": "Seconds since a stored answer was made.",
    "retry-after": "Seconds until another attempt makes sense.",
    "retry-after-ms": "The same in milliseconds.",
    "x-should-retry": "false: the same request can never pass.",
    "allow": "The methods of the path.",
    "www-authenticate": "Bearer.",
    "x-ratelimit-limit-requests": "The burst of the caller's limit of requests.",
    "x-ratelimit-limit-tokens": "The same of tokens.",
    "x-ratelimit-remaining-requests": "What is left of it.",
    "x-ratelimit-remaining-tokens": "The same of tokens.",
    "x-ratelimit-reset-requests": "Time until all of it is available again, such as 6m0s.",
    "x-ratelimit-reset-tokens": "The same of tokens.",
}
_OF_STATUS: Final = {
    401: ("www-authenticate",),
    405: ("allow",),
    429: ("retry-after", "retry-after-ms", "x-should-retry"),
    503: ("retry-after", "retry-after-ms"),
}
_VALUES: Final[dict[str, dict[str, Any]]] = {
    "x-request-timeout": {"type": "number", "minimum": 0.001, "maximum": MAX_TIMEOUT},
    "x-gateway-priority": {"enum": list(PRIORITIES)},
    "x-gateway-share": {"enum": list(SHARES)},
    "model": {"type": "string", "minLength": 1},
    "after": {"type": "integer", "minimum": 0},
    "response_id": {"type": "string", "minLength": 1, "maxLength": LONGEST_ID},
    "stream": {"type": "boolean"},
}
"""Schemas of parameters that are no mere texts."""
_PARAMETERS: Final = {
    "model": "Its id.",
    "after": "How many events the client has.",
    "response_id": "The response's id.",
    "stream": "Whether it comes as a stream of events.",
}
_BRACED: Final = re.compile(r"\{(\w+)\}")
_STREAMS: Final = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
_REFINED: Final[dict[str, dict[str, Any]]] = {
    "Wanted": {
        "request": {"allOf": [{"$ref": _REFERENCE.format(name="ChatRequest")}, _STREAMS]},
        "delays_ms": {
            "minItems": 1,
            "maxItems": MAX_READERS,
            "items": {"type": "number", "minimum": 0, "maximum": MAX_DELAY},
        },
    },
}
"""Checks of members that the structs do not make themselves."""
_ALSO: Final[dict[str, dict[str, Any]]] = {_JSON: {"type": "object"}, EVENTS: {}}
_GIVEN: Final = {"type": ["string", "array"]}
_EITHER: Final = [{"required": ["prompt"], "properties": {"prompt": _GIVEN}}, {"required": ["prompt_embeds"]}]
_OPTIONS: Final = [
    _STREAMS,
    {"properties": {"stream_options": {"anyOf": [{"type": "null"}, {"maxProperties": 0}]}}},
]
"""`stream_options` go with `stream` only."""
_KEYS: Final[list[dict[str, list[str]]]] = [{"key": []}, {"x-api-key": []}]


def describe(paths: Iterable[tuple[str, str, str]], keyless: Keyless, *, engines: bool) -> dict[str, Any]:
    """`paths`: path, methods (as in `Allow`) and endpoint of each. `engines`: with the paths that engines
    answer."""
    described: dict[str, Any] = {}
    operations = []
    for path, methods, endpoint in sorted(paths):
        operation = BY_PATH.get(path) or BY_METHOD.get((endpoint, methods)) or OPERATIONS[endpoint]
        operations.append(operation)
        described.setdefault(path, {}).update(_path(path, methods, endpoint, operation, keyless))
        if path == "/v1/models":
            one = OPERATIONS["model"]
            operations.append(one)
            item = _path(MODEL_PATH, methods, endpoint, one, keyless)
            described[MODEL_PATH] = {"parameters": _in_path(MODEL_PATH), **item}
        if path == STREAM_PATH:
            described[path]["parameters"] = [_parameter("path", "stream", _HEADERS["x-gateway-stream"])]
    for (path, method), operation in ENGINE_OPERATIONS.items() if engines else ():
        operations.append(operation)
        entry = described.setdefault(path, {"parameters": _in_path(path)} if _BRACED.search(path) else {})
        entry.update(_path(path, method, "passthrough", operation, keyless))
    headers = {name: {"description": text, "schema": _TEXT} for name, text in _HEADERS.items()}
    components: dict[str, Any] = {"schemas": _schemas(operations), "headers": headers}
    if keyless is not None:
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Streaming gateway", "version": __version__, "description": _ABOUT},
        "paths": described,
        "components": components,
    }


def _in_path(path: str) -> list[dict[str, Any]]:
    return [_parameter("path", name, _PARAMETERS[name]) for name in _BRACED.findall(path)]


def _path(path: str, methods: str, endpoint: str, operation: Operation, keyless: Keyless) -> dict[str, Any]:
    names = methods.split(", ")
    return {name.lower(): _operation(f"{name} {path}", endpoint, operation, keyless) for name in names}


def _operation(name: str, endpoint: str, operation: Operation, keyless: Keyless) -> dict[str, Any]:
    opens = keyless is None or endpoint in keyless
    asks = {
        "operationId": _NO_WORD.sub("_", name.lower()).strip("_"),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [
            *(_parameter("header", header, _HEADERS[header]) for header in ("x-request-id", *operation.requests)),
            *(_parameter("query", query, _PARAMETERS[query]) for query in operation.query),
        ],
        "responses": _responses(operation, opens=opens),
        "security": [] if opens else [{}, *_KEYS] if endpoint in FORMS else _KEYS,
    }
    if operation.takes is not None:
        body = {"required": True, "content": {_JSON: {"schema": _reference(operation.takes)}}}
        return {**asks, "requestBody": body}
    return asks


def _responses(operation: Operation, *, opens: bool) -> dict[str, Any]:
    content: dict[str, Any] = {} if operation.answer is None else {_JSON: {"schema": _reference(operation.answer)}}
    for kind in operation.also:
        content[kind] = {"schema": _ALSO.get(kind, _TEXT)}
    good = {"description": operation.summary, "headers": _headers(operation.headers), "content": content}
    responses: dict[str, Any] = {"200": good}
    error: dict[str, Any] = _reference(operation.error)
    if operation.engine:
        error = {"anyOf": [error, _OF_ENGINE]}
    by_status: dict[int, list[str]] = {}
    for code in sorted(HEAD | operation.codes | (frozenset() if opens else KEY), key=lambda code: code.code):
        by_status.setdefault(code.status, []).append(code.code)
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = {
            "description": ", ".join(codes),
            "headers": _headers(_OF_STATUS.get(status, ())),
            "content": {_JSON: {"schema": error}},
        }
    if operation.engine:
        responses["default"] = {"description": "The engine's answer of this status.", "content": {"*/*": {}}}
    return responses


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("x-request-id", *names)}


def _parameter(place: str, name: str, words: str) -> dict[str, Any]:
    return {
        "in": place,
        "name": name,
        "required": place == "path",
        "description": words,
        "schema": _VALUES.get(name, _TEXT),
    }


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    """The components of these operations' structs. A prompt, which the gateway requires itself, is marked as
    required; the types and codes of errors are those of the table."""
    kinds: set[type[msgspec.Struct]] = {answers.Error}
    for operation in operations:
        kinds.update(kind for kind in (operation.answer, operation.takes, operation.error) if kind is not None)
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    for endpoint, kind in REQUESTS.items():
        if kind not in kinds:
            continue
        schema, field = schemas[kind.__name__], PROMPT_FIELD[endpoint]
        schema["description"] = _MEMBERS
        if endpoint != "embeddings":
            schema["anyOf"] = _OPTIONS
        if endpoint == "completions":
            schema["allOf"] = [{"anyOf": _EITHER}]
        else:
            schema["required"] = [field]
            prompt = schema["properties"][field]
            prompt["anyOf"] = [each for each in prompt["anyOf"] if each != {"type": "null"}]
            del prompt["default"]
    for name, refined in _REFINED.items():
        for member, more in refined.items() if name in schemas else ():
            schemas[name]["properties"][member].update(more)
    members = schemas[answers.ErrorObject.__name__]["properties"]
    members["code"]["enum"] = [code.code for code in Code]
    members["type"]["enum"] = sorted({code.type for code in Code})
    if MessagesErrorObject.__name__ in schemas:
        types = {anthropic_type(code.status) for code in Code}
        schemas[MessagesErrorObject.__name__]["properties"]["type"]["enum"] = sorted(types)
    return dict(schemas)

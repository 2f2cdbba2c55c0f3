"""Every failure that a client can see, in one table of code, status and type, and its rendering as OpenAI's
error JSON. Foreign errors (sockets, Redis, engines) are mapped to these where they enter."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Code(Enum):
    """Every way in which a request can fail: `code` string, HTTP status, OpenAI `type`."""

    INVALID_JSON = ("invalid_json", 400, "invalid_request_error")
    INVALID_VALUE = ("invalid_value", 400, "invalid_request_error")
    MISSING_FIELD = ("missing_field", 400, "invalid_request_error")
    INVALID_HEADER = ("invalid_header", 400, "invalid_request_error")
    CONTENT_DENIED = ("content_denied", 400, "invalid_request_error")
    INVALID_API_KEY = ("invalid_api_key", 401, "invalid_request_error")
    KEY_EXPIRED = ("key_expired", 401, "invalid_request_error")
    KEY_REVOKED = ("key_revoked", 401, "invalid_request_error")
    ORIGIN_NOT_ALLOWED = ("origin_not_allowed", 403, "invalid_request_error")
    NOT_FOUND = ("not_found", 404, "invalid_request_error")
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, "invalid_request_error")
    MODEL_NOT_FOUND = ("model_not_found", 404, "invalid_request_error")
    RESPONSE_NOT_FOUND = ("response_not_found", 404, "invalid_request_error")
    STREAM_NOT_FOUND = ("stream_not_found", 404, "invalid_request_error")
    HEAD_TIMEOUT = ("head_timeout", 408, "invalid_request_error")
    BODY_TIMEOUT = ("body_timeout", 408, "invalid_request_error")
    HOST_NOT_ALLOWED = ("host_not_allowed", 421, "invalid_request_error")
    STREAM_GONE = ("stream_gone", 410, "invalid_request_error")
    BODY_TOO_LARGE = ("body_too_large", 413, "invalid_request_error")
    PROMPT_TOO_LARGE = ("prompt_too_large", 413, "invalid_request_error")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", 415, "invalid_request_error")
    STREAM_POSITION = ("stream_position_unknown", 416, "invalid_request_error")
    EXPECTATION_FAILED = ("expectation_failed", 417, "invalid_request_error")
    RATE_LIMITED = ("rate_limit_exceeded", 429, "rate_limit_error")
    QUEUE_SHARE = ("queue_share_exceeded", 429, "rate_limit_error")
    HEADERS_TOO_LARGE = ("headers_too_large", 431, "invalid_request_error")
    INTERNAL = ("internal_error", 500, "server_error")
    EMBEDDINGS_UNAVAILABLE = ("embeddings_unavailable", 501, "server_error")
    UPGRADE_NOT_SUPPORTED = ("upgrade_not_supported", 501, "server_error")
    HTTP_VERSION = ("http_version_not_supported", 505, "server_error")
    UPSTREAM_UNREACHABLE = ("upstream_unreachable", 502, "upstream_error")
    UPSTREAM_TRUNCATED = ("upstream_truncated", 502, "upstream_error")
    UPSTREAM_PROTOCOL = ("upstream_protocol", 502, "upstream_error")
    UPSTREAM_INCOMPLETE = ("upstream_incomplete", 502, "upstream_error")
    UPSTREAM_TOO_LARGE = ("upstream_too_large", 502, "upstream_error")
    UPSTREAM_ERROR_FRAME = ("upstream_error_frame", 502, "upstream_error")
    QUEUE_FULL = ("queue_full", 503, "overloaded_error")
    QUEUE_TIMEOUT = ("queue_timeout", 503, "overloaded_error")
    DEADLINE_UNMEETABLE = ("deadline_unmeetable", 503, "overloaded_error")
    MEMORY_FULL = ("memory_full", 503, "overloaded_error")
    LOCAL_RESOURCES = ("local_resources", 503, "overloaded_error")
    CEILING_REACHED = ("ceiling_reached", 503, "overloaded_error")
    CACHE_UNAVAILABLE = ("cache_unavailable", 503, "overloaded_error")
    NO_BACKEND = ("no_backend", 503, "overloaded_error")
    SHUTTING_DOWN = ("shutting_down", 503, "overloaded_error")
    DEADLINE_EXCEEDED = ("deadline_exceeded", 504, "server_error")
    UPSTREAM_CONNECT_TIMEOUT = ("upstream_connect_timeout", 504, "upstream_error")
    UPSTREAM_FIRST_TOKEN_TIMEOUT = ("upstream_first_token_timeout", 504, "upstream_error")
    UPSTREAM_TOKEN_TIMEOUT = ("upstream_token_timeout", 504, "upstream_error")
    UPSTREAM_TOTAL_TIMEOUT = ("upstream_total_timeout", 504, "upstream_error")

    def __init__(self, code: str, status: int, type_: str) -> None:
        self.code = code
        self.status = status
        self.type = type_


class GatewayError(Exception):
    """An error a client may see. `message` says what was wrong and what would be right."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after  # whole seconds, for the `Retry-After` header
        self.headers = headers  # that name what is supported

    @property
    def status(self) -> int:
        return self.code.status

    def body(self) -> dict[str, Any]:
        """The OpenAI error object: `{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.code.type,
                "param": self.param,
                "code": self.code.code,
            }
        }

    def json(self) -> bytes:
        import msgspec  # here: it takes half of the start of the small commands

        return msgspec.json.encode(self.body())

    def anthropic_json(self, request_id: str) -> bytes:
        """The error in the shape of Anthropic's API: https://docs.claude.com/en/api/errors."""
        import msgspec  # here: it takes half of the start of the small commands

        error = {"type": anthropic_type(self.status), "message": self.message}
        return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def shutting_down(retry_after: int | None = None) -> GatewayError:
    """Of a request that comes, or is still under way, while the gateway ends."""
    return GatewayError(Code.SHUTTING_DOWN, "The gateway is shutting down.", retry_after=retry_after)


def anthropic_type(status: int) -> str:
    """Anthropic's name for the errors of a status."""
    known = _ANTHROPIC_TYPES.get(status)
    return known or ("invalid_request_error" if status < 500 else "api_error")


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class SettingsError(Exception):
    """An invalid setting. The message names the setting, its source and what is valid."""


class ListenError(Exception):
    """The address or socket to listen on cannot be used; the message is the system's reason."""

    def __init__(self, why: str, port: str = "port") -> None:
        """`port`: the setting that names the port, also where a Unix socket is in its place."""
        super().__init__(why)
        self.port = port


class StartError(Exception):
    """A program that the gateway starts did not come up, for another reason than a setting; the message says which
    and why."""


def place_of(e: BaseException) -> str:
    """The innermost file and line of an exception, for the log."""
    at = e.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}" if at is not None else ""


def frames_of(e: BaseException, most: int = 8) -> str:
    """The innermost frames of an exception, innermost first. Reads no source file, unlike a traceback."""
    places = []
    at = e.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{at.tb_lineno} {code.co_name}")
        at = at.tb_next
    return " < ".join(places[: -most - 1 : -1])


def words_of(e: BaseException, most: int = 300) -> str:
    """An exception as text, cut. Not its `repr`: that of a UnicodeError holds the whole text, such as a prompt."""
    try:
        return f"{type(e).__name__}: {e}"[:most]
    except Exception:  # noqa: BLE001 - `__str__` of a foreign exception
        return type(e).__name__

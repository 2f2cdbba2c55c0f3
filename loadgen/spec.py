"""The settings of a run as frozen plain data: how to connect, what to send, when, within which limits."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

Endpoint = Literal["chat", "completions", "embeddings"]

PATHS: Final[dict[Endpoint, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
MIB: Final = 1024 * 1024


class Http(msgspec.Struct, frozen=True, kw_only=True):
    """HTTP settings. Times in seconds; 0 is no limit."""

    headers: tuple[tuple[str, str], ...] = ()
    keepalive: bool = True
    keepalive_seconds: float = 4.0  # below uvicorn's 5 s, so that no request meets a closing connection
    insecure: bool = False
    connect_timeout: float = 10.0
    request_timeout: float = 600.0
    idle_timeout: float = 120.0
    max_response_bytes: int = 64 * MIB


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every request besides its prompt. None: the prompt's own field, or the server's default."""

    model: str
    stream: bool = True
    continuous_usage: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    ignore_eos: bool = False
    extra: dict[str, Any] = {}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits on the generator's own error; above them its figures must not be used.

    Figures should be accurate to 1 ms or 5 %, whichever is larger: so an error may be as large as the larger of
    `error_ms` and `error_share` of the median that it affects.
    """

    error_ms: float = 1.0
    late_ms: float = 5.0  # p99 of lateness
    error_share: float = 0.05
    censored: float = 0.05  # share of generated events that were merged, if the loop's lag may be the cause
    cpu: float = 0.9  # of one core
    step_ms: float = 1.0  # CLOCK_REALTIME stepped while the kernel stamped by it

    def allowed_ms(self, median_ms: float | None) -> float:
        return max(self.error_ms, self.error_share * (median_ms or 0.0))

    def allowed_late_ms(self, median_ms: float | None) -> float:
        """The limit on the p99 of lateness."""
        return max(self.late_ms, self.error_share * (median_ms or 0.0))


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """When requests are sent. `max_concurrency` alone is a closed loop; with a rate it caps an open one."""

    max_concurrency: int | None = None
    open_loop: bool = False
    shed: bool = False  # drop requests above the cap and count them, instead of queueing
    max_seconds: float | None = None  # after it nothing more is sent
    grace_seconds: float = 0.0  # after `max_seconds`, for requests in flight to end by themselves

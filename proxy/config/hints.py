"""Suggestions for unknown settings: by their names as flag, variable and key, by the names that vLLM and other
gateways use, else by spelling."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from proxy.config.settings import options

_LIMITS: Final = ("rate_limit_rps", "rate_limit_tokens_per_minute", "rate_limit_streams")
_BREAKER: Final = ("breaker_failures", "breaker_rate", "breaker_seconds")
_TIMEOUTS: Final = ("total_timeout", "first_token_timeout", "queue_timeout", "connect_timeout")
_VLLM: Final = "it is a setting of the engine: give it to `vllm serve`"
_CORS: Final = "cors_origins allows all methods and headers, and never credentials (cookies)"
_MODELS: Final = "models are the engines' own: the gateway asks every --backend which it serves"

_MEANINGS: Final[dict[tuple[str, ...], str | tuple[str, ...]]] = {
    ("upstream", "upstreams", "engine", "engines", "vllm-url", "server", "servers", "base-url", "api-base"): (
        "backends",
    ),
    ("url", "urls", "endpoint", "endpoints", "target", "targets", "service-discovery", "static-backends"): (
        "backends",
    ),
    ("bind", "listen", "address", "addr", "ip", "interface", "hostname"): ("host", "port"),
    ("p", "http-port", "listen-port", "server-port"): ("port",),
    ("uds", "unix-socket", "socket"): ("listen_unix",),
    ("ssl-certfile", "certfile", "cert", "certificate", "tls", "ssl", "https"): ("tls_cert", "tls_key"),
    ("ssl-keyfile", "keyfile", "private-key"): ("tls_key",),
    ("ssl-ca-certs", "ca", "cacert"): ("backend_ca",),
    ("insecure", "skip-verify", "verify"): ("backend_insecure",),
    ("api-key", "api-keys", "key", "keys", "auth", "auth-key", "auth-token", "master-key", "token", "tokens"): (
        "api_keys_file",
        "backend_api_key_file",
    ),
    ("openai-api-key", "vllm-api-key", "engine-api-key", "upstream-api-key"): ("backend_api_key_file",),
    ("num-workers", "worker", "processes", "threads", "replicas", "api-server-count"): ("workers",),
    ("timeout", "request-timeout", "read-timeout", "timeouts"): _TIMEOUTS,
    ("graceful-timeout", "shutdown-timeout", "timeout-graceful-shutdown", "grace-period"): ("drain_timeout",),
    ("concurrency", "max-concurrency", "max-concurrent-requests", "max-parallel-requests"): ("max_inflight",),
    ("limit-concurrency", "max-requests", "parallel"): ("max_inflight", "max_connections"),
    ("queue", "queue-size", "max-queue", "max-queue-size", "backlog"): ("queue_limit", "queue_timeout"),
    ("cache", "cache-ttl", "ttl", "cache-seconds", "cache-timeout", "caching"): ("cache_ttl_seconds", "share"),
    ("redis-host", "redis-port", "redis-password", "cache-host", "cache-url", "cache-backend"): ("redis",),
    ("limits", "limit", "rate-limit", "rate-limits", "ratelimit", "rps", "rpm", "tpm", "qps"): _LIMITS,
    ("max-rpm", "max-tpm", "budget", "quota", "throttle"): _LIMITS,
    ("routing-policy", "routing-logic", "routing-strategy", "policy", "load-balancing", "lb"): ("routing",),
    ("session-key", "sticky", "affinity"): ("routing",),
    ("num-retries", "max-retries", "retry"): ("retries", "retry_on"),
    ("allowed-fails", "cooldown", "cooldown-time", "circuit-breaker", "breaker"): _BREAKER,
    ("health-check-interval", "health-interval", "poll-interval"): ("refresh_seconds",),
    ("max-request-size", "max-body-size", "body-limit", "client-max-body-size"): ("max_body_bytes",),
    ("forwarded-allow-ips", "proxy-headers", "trust-proxy", "real-ip"): ("trusted_proxies",),
    ("metrics", "metrics-port", "prometheus", "prometheus-port", "admin"): ("admin_port",),
    ("verbose", "debug", "loglevel", "uvicorn-log-level"): ("log_level",),
    ("disable-log-requests", "access-log", "disable-uvicorn-access-log"): ("log_level",),
    ("otel", "otlp", "otlp-traces-endpoint", "tracing"): ("trace",),
    ("memory", "max-memory", "memory-limit"): ("memory_budget",),
    ("max-tokens",): ("max_tokens_cap",),
    ("cors", "allowed-origins", "allow-origins", "cors-allow-origins", "origins"): ("cors_origins",),
    ("allowed-methods", "allowed-headers", "allow-credentials", "cors-allow-credentials"): _CORS,
    ("alias", "aliases", "model-aliases", "model-group-alias", "canary"): ("models",),
    ("fallback", "fallbacks", "default-fallbacks", "context-window-fallbacks"): ("model_fallbacks",),
    ("model", "model-list", "served-model-name", "static-models", "model-name"): _MODELS,
    ("max-model-len", "tensor-parallel-size", "gpu-memory-utilization", "max-num-seqs", "dtype"): _VLLM,
    ("enable-prefix-caching", "max-num-batched-tokens", "quantization", "trust-remote-code"): _VLLM,
}
_BY_WORD: Final = {word: meaning for words, meaning in _MEANINGS.items() for word in words}


def hint(name: str, names: Iterable[str], written: Callable[[str], str]) -> str:
    """The end of an error about an unknown setting: "" or `; did you mean …?`. `name`: a flag, variable or key;
    `names`: the known ones of its kind; `written`: a setting's name as its kind."""
    word = _plain(name)
    plain = {_plain(each): each for each in names}
    near = [plain[each] for each in difflib.get_close_matches(word, plain)]
    dashed = word.replace("_", "-")
    meaning = (_TWINS[dashed],) if dashed in _TWINS else _BY_WORD.get(dashed)
    if isinstance(meaning, str):
        return f"; {meaning}"
    meant: Sequence[str] = [written(setting) for setting in meaning] if meaning else near[:1]
    return f"; did you mean {_one_of(meant)}?" if meant else ""


def _plain(name: str) -> str:
    """Without what all names of its kind begin with, which would make short names alike."""
    return name.removeprefix("GATEWAY_").lstrip("-").lower()


_TWINS: Final = {
    _plain(each).replace("_", "-"): option.name
    for option in options()
    for each in (option.flag, option.name, *option.env)
}
"""Settings by each of their names: a flag, variable and key may differ, such as --backend and GATEWAY_BACKENDS."""


def _one_of(names: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))

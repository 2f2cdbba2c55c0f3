"""The settings: frozen data, each declared once with its flag, environment variable, TOML key, bounds and help.
`loader.py` fills them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from proxy.config import values
from proxy.config.model_names import Alias, Standbys, read_aliases, read_standbys
from proxy.config.vocabulary import DEFAULT_RETRY_CAUSES, RETRY_CAUSES, ROUTING_POLICIES

KIB: Final = 1024
MIB: Final = 1024 * KIB
_SIZES: Final = {"BYTES": 1, "BYTES|auto": 1, "MIB": MIB}
_SUFFIXES: Final = {"SECONDS": "s", "MS": "ms"}
_CLAUSE: Final = re.compile(r"[:;.] ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting as users see it: its flag, environment variable, TOML key, help and table row."""

    name: str
    default: Any
    read: Callable[[Any], Any]  # text or a TOML value into the typed value; raises ValueError with what is valid
    help: str
    metavar: str
    env: tuple[str, ...]  # the first takes precedence
    flag: str
    group: str = ""
    hidden: bool = False  # its value is never shown

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def repeats(self) -> bool:
        return isinstance(self.default, tuple)

    @property
    def brief(self) -> str:
        """The first clause of the help."""
        return _CLAUSE.split(self.help, maxsplit=1)[0].rstrip(".")

    @property
    def shown_default(self) -> str:
        return self.typed(self.default)

    def typed(self, value: Any) -> str:
        """A value as users type it. `read` reads it back as the same value."""
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, int | float):
            return self._number(value)
        return (", ".join(value) if isinstance(value, tuple) else value) or "none"

    def _number(self, value: float) -> str:
        if value == 0:
            return "auto" if self.metavar.endswith("|auto") else "0"
        if self.metavar in _SIZES:
            return values.size_text(int(value) * _SIZES[self.metavar])
        number = repr(value).removesuffix(".0")  # as exact as the value
        return number + _SUFFIXES.get(self.metavar, "")


def _setting(
    default: Any, read: Callable[[Any], Any], metavar: str, help: str, *, secret: bool = False, **more: Any
) -> Any:
    return field(
        default=default, repr=not secret, metadata={"read": read, "metavar": metavar, "help": help, **more}
    )


def _switch(help: str) -> Any:
    return _setting(False, values.switch, "on|off", help)


def _file(help: str) -> Any:
    return _setting("", values.file, "FILE", help)


def _choice(default: str, *others: str, help: str) -> Any:
    return _setting(default, values.choice(default, *others), "|".join((default, *others)), help)


def _count(default: int, help: str, *, low: int = 1, high: int | None = None, unit: str = "N") -> Any:
    example = str(default or min(100, high or 100))
    if high is None or high >= 10**6:
        example += " or 1e6"
    return _setting(default, values.whole(low, high, example=example), unit, help)


def _port(default: int, help: str) -> Any:
    return _setting(default, values.whole(0, 65535, example="8080"), "PORT", help)


def _size(default: int, help: str) -> Any:
    return _setting(default, values.size(low=KIB), "BYTES", help)


def _rate(help: str) -> Any:
    number = values.number(0.0, 10**6, example="0.5 or 100")

    def read(raw: object) -> Any:
        value = number(raw)
        if 0 < value < values.LEAST_RATE:
            raise ValueError(f"must be 0, or from {values.LEAST_RATE:f} to 1,000,000")
        return value

    return _setting(0.0, read, "N", help)


def _percent(default: float, help: str) -> Any:
    return _setting(default, values.number(0, 100, example="20"), "PERCENT", help)


def _limit(help: str) -> Any:
    return _count(0, help, low=0, high=10**9)


def _seconds(default: float, help: str, *, low: float = 0.0) -> Any:
    return _setting(default, values.seconds(low), "SECONDS", help)


def _milliseconds(default: float, high: float, help: str) -> Any:
    return _setting(default, values.milliseconds(0, high), "MS", help)


GROUPS: Final = (
    ("Listening", "host"),
    ("Engines", "backends"),
    ("Names of models", "models"),
    ("Load balancing, retries and circuit breakers", "routing"),
    ("Admission and queue", "max_inflight"),
    ("Sharing and stored answers", "share"),
    ("Embeddings", "embed_batch_items"),
    ("API keys and operators", "api_keys_file"),
    ("Rate limits", "rate_limit_rps"),
    ("Limits of requests and prompts", "max_tokens_cap"),
    ("Sizes and memory", "memory_budget"),
    ("Timeouts", "head_timeout"),
    ("Log and traces", "log_format"),
)
"""The groups of settings, each with its first one; it goes on to the next group's first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. `proxy.config.load` fills it from flags, environment and file."""

    # Listening
    host: str = _setting(
        "127.0.0.1", values.host, "ADDRESS", "Address to listen on; 0.0.0.0 is all of this machine's."
    )
    port: int = _port(8080, "Port to listen on; 0 takes any free port.")
    listen_unix: str = _file("Unix socket to listen on instead of an address and a port.")
    listen_unix_mode: Literal["0600", "0660", "0666"] = _choice(
        "0600", "0660", "0666", help="Mode of that socket."
    )
    tls_cert: str = _file("Server certificate, PEM; it may hold the key too; none: plain HTTP.")
    tls_key: str = _file("Private key of `tls_cert`, PEM, unencrypted.")
    workers: int = _setting(
        1,
        values.whole_or("auto", 1, 256, example="4"),
        "N|auto",
        "Processes that serve, on one address; `auto`: one for each CPU that this process may use.",
    )
    max_connections: int = _count(4096, "Most concurrent client connections.")
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        values.networks,
        "CIDR",
        "Proxies whose X-Forwarded-For is trusted, addresses or networks; `unix` for peers on a Unix socket.",
    )
    proxy_protocol: bool = _switch(
        "Expect a PROXY protocol header, version 1 or 2, on connections of trusted proxies."
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        values.hosts,
        "HOST",
        "Host headers that are accepted besides `host` and the names of loopback: names, `*.example.com`, `*` for "
        "any. Without one: any, but on a loopback address only those.",
    )
    cors_origins: tuple[str, ...] = _setting(
        (),
        values.origins,
        "ORIGIN",
        "Origins whose web pages may use the API (CORS), such as https://chat.example; `*`: any page that a user "
        "opens, and without API keys it may use the engines. Credentials (cookies) are never allowed.",
    )
    # Engines
    backends: tuple[str, ...] = _setting(
        (),
        values.backend_urls,
        "URL",
        "URL of an engine (vLLM): http://, https:// or unix:///path; repeated or comma-separated for several. "
        "dns+http://NAME:PORT is one for each address of the name. Without one, the embedded engine.",
        flag="--backend",
    )
    backend_api_key: str = _setting(
        "", values.secret, "KEY", "API key of the engines, sent as a Bearer token.", secret=True, hidden=True
    )
    backend_api_key_file: str = _file("File that holds only the API key of the engines.")
    forward_authorization: bool = _switch("Forward the client's Authorization and x-api-key headers to engines.")
    backend_ca: str = _file("CA certificates trusted for https:// engines, PEM; none: the system's.")
    backend_cert: str = _file("Client certificate for https:// engines, PEM; it may hold the key too.")
    backend_key: str = _file("Private key of `backend_cert`, PEM, unencrypted.")
    backend_insecure: bool = _switch("Do not verify the certificates of https:// engines.")
    refresh_seconds: float = _seconds(10.0, "Interval of health checks and model discovery.", low=0.1)
    probe: Literal["on", "off"] = _choice(
        "on", "off", help="Probe each engine at start-up for how its streams fold into JSON bodies."
    )
    # Names of models
    models: tuple[Alias, ...] = _setting(
        (),
        read_aliases,
        "NAME=MODEL",
        "Names by which clients may call models of the engines; repeated or comma-separated for several. In the "
        "file a table, which may divide a name among models by weight: `chat = {llama-a = 95, llama-b = 5}`.",
        flag="--model-alias",
    )
    model_fallbacks: tuple[Standbys, ...] = _setting(
        (),
        read_standbys,
        "MODEL=OTHER",
        "Models that answer where no engine of a model can; repeated for several, which are tried in this order. "
        'In the file a table: `llama-a = ["llama-b"]`.',
        flag="--model-fallback",
    )
    # Load balancing, retries and circuit breakers
    routing: Literal["power-of-two", "least-outstanding", "round-robin", "hash", "prefix"] = _setting(
        "power-of-two",
        values.choice(*ROUTING_POLICIES),
        "|".join(ROUTING_POLICIES),
        "Load balancing policy; `hash` keeps a session at one engine, `prefix` prompts with the same beginning.",
    )
    load_seconds: float = _seconds(1.0, "Interval of polling engines' load metrics; 0 disables it.")
    load_weight: float = _setting(
        1.0,
        values.number(0, 1000, example="0.5"),
        "X",
        "Weight of the polled load beside the requests in flight from here.",
    )
    retries: int = _count(2, "Most retries of a request; 0: none.", low=0, high=100)
    retry_on: str = _setting(
        ",".join(DEFAULT_RETRY_CAUSES),
        values.names(*RETRY_CAUSES),
        "CAUSES",
        "Failures that are retried: " + ", ".join(RETRY_CAUSES) + "; or none.",
    )
    retry_backoff_ms: float = _milliseconds(
        50.0,
        60_000,
        "Upper bound of the first wait before a retry at the same engine; doubled each time.",
    )
    retry_max_wait: float = _seconds(
        5.0, "Longest wait before a retry; a longer `Retry-After` is passed on to the client."
    )
    retry_budget: float = _percent(20.0, "Retry budget: retries per hundred requests, besides the burst.")
    retry_burst: int = _count(20, "Retries that the budget allows at once.", low=0)
    resume: Literal["auto", "ids", "off"] = _choice(
        "auto",
        "ids",
        "off",
        help="Continue a stream that breaks after its first frame; `auto` sends a deterministic, shared request "
        "again and compares both answers; `ids` also asks engines for the ids of tokens, and continues sampled "
        "streams from them.",
    )
    hand_over_seconds: float = _seconds(
        10.0,
        "Time that a removed engine's streams have to end; those that `resume` can continue go on elsewhere.",
    )
    breaker_failures: int = _count(
        5, "Consecutive failures that open an engine's circuit breaker; 0 disables this rule.", low=0
    )
    breaker_rate: float = _percent(
        50.0,
        "Failure rate, among at least 20 requests, that opens the breaker; 0 disables this rule.",
    )
    breaker_window: float = _seconds(10.0, "Window of the failure rate.", low=0.1)
    breaker_seconds: float = _seconds(
        1.0, "Time from opening the breaker to its first probe; doubled each time.", low=0.01
    )
    breaker_max_seconds: float = _seconds(30.0, "Longest time a breaker stays open before a probe.", low=0.01)
    # Admission and queue
    max_inflight: int = _setting(
        0,
        values.whole_or("auto", 1, 10**6, example="256"),
        "N|auto",
        "Most requests in flight at one engine; `auto`: as many as it runs, where it reports its load, else 256.",
    )
    admission: Literal["local", "fleet"] = _choice(
        "local",
        "fleet",
        help="What `max_inflight` bounds: the requests of this gateway, or of all with one Redis and namespace.",
    )
    pace_ttft_ms: float = _milliseconds(
        0.0,
        10**6,
        "With max_inflight = auto: target of the engine's time to first token; 0: only its queue counts.",
    )
    queue_limit: int = _count(1024, "Most requests in the queue; one more is answered 503.")
    queue_timeout: float = _seconds(
        300.0,
        "Longest time in the queue; a request that would wait longer is answered 503; 0 is no limit.",
    )
    queue_patience: float = _seconds(
        10.0,
        "Queueing time after which requests get one slot in four regardless of priority and fair share.",
        low=0.1,
    )
    top_priority: Literal["high", "normal", "low"] = _choice(
        "normal", "high", "low", help="Highest `x-gateway-priority` of callers without an API key of this gateway."
    )
    # Sharing and stored answers
    share: Literal["auto", "all", "off"] = _choice(
        "auto", "all", "off", help="Which identical requests share one answer: deterministic ones, all, or none."
    )
    share_scope: Literal["tenant", "global"] = _choice(
        "tenant", "global", help="Who may share an answer: callers of one tenant, or all callers."
    )
    cache_salt: str = _setting(
        "",
        values.salt_secret,
        "SECRET|auto",
        "Secret by which the prefix cache of the engines is kept apart by tenant: each request goes up with a "
        "`cache_salt` of its tenant. `auto` is a new one at each start; none: off.",
        secret=True,
        hidden=True,
    )
    cache_salt_file: str = _file("File that holds only that secret.")
    fleet: Literal["off", "auto"] = _choice(
        "off",
        "auto",
        help="Share generations under way with other gateways; `auto`: where `redis` is yours, or with several "
        "workers.",
    )
    resume_grace_seconds_max: float = _seconds(
        60.0,
        "Longest time that a stream is kept for a client that has left and asked for it by `x-gateway-resume`; 0: "
        "none is kept.",
    )
    resume_streams_max: int = _count(
        1024, "Most streams that are kept for such clients at a time, half of them for one caller."
    )
    merge_max: int = _count(
        16,
        "Most choices (`n`) of one vLLM request merged from identical sampled requests; 1 disables merging.",
        high=1024,
    )
    redis: str = _setting(
        "auto",
        values.redis_url,
        "URL",
        "Redis for stored answers and shared limits: `auto` (embedded), `off`, or redis://, rediss://, unix://, "
        "redis+sentinel://HOST,HOST/SERVICE/0 or redis+cluster://HOST,HOST (rediss+ for TLS).",
        env=("GATEWAY_REDIS_URL", "GATEWAY_REDIS"),
        secret=True,
    )
    state_redis: str = _setting(
        "",
        values.own_redis_url,
        "URL",
        "Another Redis for what must not be evicted: shared limits. As `redis`; none: the same one.",
        secret=True,
    )
    redis_namespace: str = _setting(
        "gateway",
        values.namespace,
        "NAME",
        "Prefix of all keys in Redis; fleets that must not share answers or limits need different ones.",
    )
    redis_timeout_ms: int = _setting(
        100, values.milliseconds(1, 60_000, whole=True), "MS", "Longest time a request waits for Redis."
    )
    redis_memory_mb: int = _setting(64, values.mebibytes(4, 10**6), "MIB", "Memory limit of the embedded Redis.")
    cache_ttl_seconds: int = _setting(
        600,
        values.seconds(0, 10**9, whole=True),
        "SECONDS",
        "How long a finished answer stays stored; 0 stores none.",
    )
    cache_max_entry_bytes: int = _size(MIB, "Largest answer that is stored.")
    cache_max_pending_bytes: int = _size(32 * MIB, "Most bytes of answers waiting to be written to Redis.")
    max_batch: int = _count(64, "Most look-ups in one Redis round trip.", high=4096)
    batch_window_ms: float = _milliseconds(
        0.0, 1000, "Longest delay of a look-up to form a batch; 0 never delays one."
    )
    # Embeddings
    embed_batch_items: int = _count(
        64,
        "Most embedding inputs, of all clients, in one engine request; 1 passes requests on as they are.",
        high=2048,
    )
    embed_batch_tokens: int = _count(8192, "Most tokens, estimated, in one batched embedding request.")
    embed_batch_window_ms: float = _milliseconds(
        0.0,
        1000,
        "Longest delay of an embedding input to form a batch; 0 never delays one.",
    )
    embed_batch_calls: int = _count(
        8,
        "Batched embedding requests of one kind in flight at each engine; later inputs form the next batch.",
        high=1024,
    )
    embed_stub: bool = _switch("Answer `/embed` with a marked stub where no engine can embed.")
    # API keys and operators
    api_keys_file: str = _file("TOML file of the API keys that clients must send; none: no authentication.")
    metrics_key: bool = _setting(
        True, values.switch, "on|off", "Require an operator's key for /metrics where there are API keys."
    )
    admin_port: int = _port(
        0, "Separate port for operators: /metrics, /-/state, the page and flushes are served only there; 0: none."
    )
    admin_host: str = _setting("127.0.0.1", values.host, "ADDRESS", "Address of the operators' port.")
    page: bool = _setting(
        True,
        values.switch,
        "on|off",
        "Serve a page with the state and a playground at `/`, and one with the API at `/docs`.",
    )
    # Rate limits
    rate_limit_rps: float = _rate("Requests per second of one caller, on average; 0 is no limit.")
    rate_limit_burst: int = _limit("Burst of one caller's requests; 0: one second's worth.")
    rate_limit_tokens_per_minute: int = _limit(
        "Tokens per minute of one caller, prompt and completion; 0 is no limit."
    )
    rate_limit_streams: int = _limit("Concurrent requests of one caller; 0 is no limit.")
    global_limit_rps: float = _rate("Requests per second of all callers together; 0 is no limit.")
    global_limit_burst: int = _limit("Burst of all callers' requests; 0: one second's worth.")
    global_limit_tokens_per_minute: int = _limit("Tokens per minute of all callers together; 0 is no limit.")
    global_limit_streams: int = _limit("Concurrent requests of all callers; 0 is no limit.")
    rate_limit_followers: Literal["generation", "reader"] = _choice(
        "generation",
        "reader",
        help="Who is charged the tokens of a shared answer: the caller that began it, or every reader.",
    )
    rate_limit_assumed_tokens: int = _count(
        512, "Completion tokens reserved for a request whose length is not known beforehand.", high=10**6
    )
    # Limits of requests and prompts
    max_tokens_cap: int = _count(0, "Highest max_tokens of a request; 0 is no cap.", low=0)
    max_tokens_action: Literal["lower", "refuse"] = _choice(
        "lower", "refuse", help="Action for requests above the cap or without max_tokens."
    )
    max_messages: int = _count(
        0, "Most chat messages, completion prompts or embedding inputs of a request; 0 is no limit.", low=0
    )
    max_prompt_chars: int = _count(0, "Most characters of a prompt, all messages together; 0 is no limit.", low=0)
    max_n: int = _count(0, "Most choices (`n`) of a request; 0 is no limit.", low=0)
    max_best_of: int = _count(0, "Most candidates (`best_of`) of a request; 0 is no limit.", low=0)
    deny_file: str = _file("Deny list for prompts: on each line a text, or `re:` and a pattern.")
    deny_answers: bool = _switch("Check answers against the deny list too, while they stream.")
    deny_window: int = _count(
        256,
        "Longest match of a pattern in a streamed answer; that many characters are held back.",
        high=65_536,
        unit="CHARS",
    )
    # Sizes and memory
    memory_budget: int = _setting(
        0,
        values.size_or("auto", 16 * MIB),
        "BYTES|auto",
        "Memory budget of requests and answers together; `auto` is a quarter of the machine's or cgroup's memory.",
    )
    max_body_bytes: int = _size(16 * MIB, "Largest request body; a larger one is answered 413.")
    max_upload_bytes: int = _size(
        26 * MIB, "Largest multipart form passed through, such as audio; a larger one is answered 413."
    )
    max_headers: int = _count(100, "Most header fields of a request.", high=10_000)
    max_header_bytes: int = _size(16 * KIB, "Longest request line or header field.")
    max_head_bytes: int = _size(
        64 * KIB, "Largest request line and header fields together; larger ones are answered 431."
    )
    max_frame_bytes: int = _size(4 * MIB, "Largest single event of a stream.")
    max_flight_bytes: int = _size(64 * MIB, "Largest answer held in memory.")
    # Timeouts
    head_timeout: float = _seconds(
        15.0, "Timeout for a request's line and headers, from the connection or their first byte.", low=0.1
    )
    body_timeout: float = _seconds(30.0, "Timeout for a request's body; 0 is no limit.")
    idle_timeout: float = _seconds(
        75.0,
        "Time that a client's idle connection is kept; set it longer than a load balancer's.",
        low=1.0,
    )
    connect_timeout: float = _seconds(5.0, "Timeout for connecting to an engine.", low=0.01)
    first_token_timeout: float = _seconds(
        300.0,
        "Timeout for a stream's first token; 0 is no limit. Without streaming only `total_timeout` applies.",
    )
    token_timeout: float = _seconds(60.0, "Timeout between two tokens; 0 is no limit.")
    total_timeout: float = _seconds(1800.0, "Timeout for a complete answer; 0 is no limit.")
    client_stall_timeout: float = _seconds(60.0, "Timeout for a client that does not read; 0 is no limit.")
    keepalive_seconds: float = _seconds(
        15.0,
        "Silence after which a client that waits for its stream to begin gets a comment, and each time another; 0 "
        "is none. With the first one goes status 200: a later failure is an error frame.",
    )
    drain_delay: float = _seconds(0.0, "Time from SIGTERM, with /ready failing, until new requests are refused.")
    drain_timeout: float = _seconds(25.0, "Time for requests in flight to finish after that; then they are cut.")
    # Log and traces
    log_format: Literal["json", "text"] = _choice("json", "text", help="Format of the log lines on stdout.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        values.choice("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "Lowest level that is logged.",
    )
    log_prompts: bool = _switch("Log prompts.")
    record_file: str = _file("Record each request as a line of JSON here, for `loadgen` to replay; none: off.")
    record_prompts: Literal["hashed", "whole"] = _choice(
        "hashed",
        "whole",
        help="Prompts in the recording: keyed hashes of their blocks, or the whole request bodies.",
    )
    record_max_bytes: int = _size(
        256 * MIB, "Size of the recording's file; then it is renamed and a new one begun."
    )
    record_files: int = _count(4, "Files that a recording keeps, the current one included.", high=1000)
    trace: Literal["off", "otlp"] = _choice(
        "off", "otlp", help="Trace requests by OpenTelemetry; the OTEL_* environment names the collector."
    )
    warnings: tuple[str, ...] = ()  # not a setting: warnings about how the settings were given
    config: str = field(default="", compare=False)  # not a setting: the path of the settings file


def options() -> tuple[Option, ...]:
    """All settings, in the order of the documentation."""
    firsts = {first: group for group, first in GROUPS}
    found = []
    group = ""
    for f in fields(Settings):
        group = firsts.get(f.name, group)
        if f.metadata:
            standard = {"env": (f"GATEWAY_{f.name.upper()}",), "flag": "--" + f.name.replace("_", "-")}
            found.append(
                Option(**{"name": f.name, "default": f.default, "group": group, **standard, **f.metadata})
            )
    return tuple(found)


def settings_table() -> str:
    """The tables of settings in `ops/docs/settings.md`, one for each group, in Markdown."""
    rows = []
    group = ""
    for option in options():
        if option.group != group:
            group = option.group
            rows += [
                "",
                f"### {group}",
                "",
                "| flag | environment | TOML | default | what it is |",
                "|---|---|---|---|---|",
            ]
        metavar = "" if option.is_switch else " " + option.metavar.replace("|", "\\|")
        flag = f"`{option.flag}{metavar}`"
        help = option.help.replace("|", "\\|")
        rows.append(f"| {flag} | `{option.env[0]}` | `{option.name}` | {option.shown_default} | {help} |")
    return "\n".join(rows[1:]) + "\n"

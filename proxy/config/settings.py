"""Owns the settings: plain frozen data, each declared once with its flag, environment twin, bounds and help.
Must not know who uses them, nor read files, flags or the environment: `loader.py` does that.
Called by everything that is given a setting; filled by config_load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from proxy.config import values
from proxy.config.vocabulary import DEFAULT_RETRY_CAUSES, RETRY_CAUSES, ROUTING_POLICIES

VERSION: Final = "0.1.0"
KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How a setting is given: all of its flag, environment twin, TOML key, help and table row come from here."""

    name: str
    default: Any
    read: Callable[[Any], Any]  # a raw value, text or TOML, to the setting's; raises ValueError: what is right
    help: str
    metavar: str
    env: tuple[str, ...]  # the first one wins over the next
    flag: str
    hidden: bool = False  # a value that no error, line or page may show

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def repeats(self) -> bool:
        return isinstance(self.default, tuple)

    @property
    def shown_default(self) -> str:
        value = self.default
        if isinstance(value, bool):
            return "on" if value else "off"
        if value == 0 and self.metavar.endswith("|auto"):
            return "auto"
        if isinstance(value, int) and self.metavar.startswith("BYTES"):
            return values.size_text(value)
        if isinstance(value, int | float):
            return f"{value:g}"
        return str(value or "none")


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
    return _setting(default, values.whole(low, high), unit, help)


def _size(default: int, help: str) -> Any:
    return _setting(default, values.size(low=KIB), "BYTES", help)


def _rate(help: str) -> Any:
    return _setting(0.0, values.number(0.0, 10**6), "N", help)


def _limit(help: str) -> Any:
    return _count(0, help, low=0, high=10**9)


def _seconds(default: float, help: str, *, low: float = 0.0) -> Any:
    return _setting(default, values.number(low), "SECONDS", help)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, at its default unless given. `proxy.config.loader.load` fills it; tests make their own."""

    host: str = _setting("127.0.0.1", values.host, "ADDRESS", "Address to listen on; 0.0.0.0 is every one.")
    port: int = _count(8080, "Port to listen on; 0 takes any free one.", low=0, high=65535, unit="PORT")
    backends: tuple[str, ...] = _setting(
        (),
        values.backend_urls,
        "URL",
        "An engine (vLLM): http://, https:// or unix:///path; repeated or comma-separated for several; none: the "
        "embedded engine.",
        flag="--backend",
    )
    backend_ca: str = _file("The only certificates to trust of https:// engines, PEM; none: the system's.")
    backend_cert: str = _file("The client certificate shown to https:// engines, PEM; it may hold the key too.")
    backend_key: str = _file("The private key of that certificate, PEM, unencrypted.")
    backend_api_key: str = _setting(
        "", values.secret, "KEY", "The key that engines ask for, sent as a Bearer token.", secret=True, hidden=True
    )
    backend_api_key_file: str = _file("A file that holds that key and nothing else.")
    forward_authorization: bool = _switch("Whether engines get the client's own Authorization header.")
    backend_insecure: bool = _switch("Whether https:// engines are trusted whatever their certificate says.")
    routing: Literal["power-of-two", "least-outstanding", "round-robin", "hash", "prefix"] = _setting(
        "power-of-two",
        values.choice(*ROUTING_POLICIES),
        "|".join(ROUTING_POLICIES),
        "How one of several engines is chosen; `hash` by session, `prefix` by how a prompt begins.",
    )
    load_seconds: float = _seconds(1.0, "Between two looks at what several engines report of their load; 0: none.")
    load_weight: float = _setting(
        1.0, values.number(0, 1000), "X", "How much such a report counts beside requests under way."
    )
    breaker_failures: int = _count(5, "Failures in a row that open an engine's breaker; 0: none do.", low=0)
    breaker_rate: float = _setting(
        50.0,
        values.number(0, 100),
        "PERCENT",
        "Failures among at least 20 requests that open it; 0: no rate.",
    )
    breaker_window: float = _seconds(10.0, "For how long such a failure counts.", low=0.1)
    breaker_seconds: float = _seconds(1.0, "Open before the first probe; doubled each time.", low=0.01)
    breaker_max_seconds: float = _seconds(30.0, "Open at most.", low=0.01)
    retries: int = _count(2, "Most times a request is asked again; 0: never.", low=0, high=100)
    retry_on: str = _setting(
        ",".join(DEFAULT_RETRY_CAUSES),
        values.names(*RETRY_CAUSES),
        "CAUSES",
        "After what: " + ", ".join(RETRY_CAUSES) + "; or none.",
    )
    retry_backoff_ms: float = _setting(
        50.0,
        values.number(0, 60_000),
        "MS",
        "First wait at most, for the same engine again; doubled each time.",
    )
    retry_max_wait: float = _seconds(5.0, "Longest such wait; a longer `Retry-After` goes to the client.")
    retry_budget: float = _setting(
        20.0, values.number(0, 100), "PERCENT", "Retries for each hundred requests, besides the burst."
    )
    retry_burst: int = _count(20, "Retries that may come at once, whatever the budget.", low=0)
    redis: str = _setting(
        "auto",
        values.redis_url,
        "URL",
        "Where answers are kept: `auto` (embedded), `off`, or redis://, rediss:// or unix://.",
        env=("GATEWAY_REDIS_URL", "GATEWAY_REDIS"),
        secret=True,
    )
    share: Literal["auto", "all", "off"] = _choice(
        "auto", "all", "off", help="Which identical requests share one answer: deterministic ones, all, none."
    )
    share_scope: Literal["tenant", "global"] = _choice(
        "tenant", "global", help="Who may share an answer: callers of one tenant, or everyone."
    )
    cache_ttl_seconds: int = _count(
        600, "How long a finished answer is kept; 0 stores none.", low=0, high=10**9, unit="SECONDS"
    )
    cache_max_entry_bytes: int = _size(MIB, "Largest answer that is stored.")
    cache_max_pending_bytes: int = _size(32 * MIB, "Answers that may wait to be written to Redis.")
    redis_timeout_ms: int = _count(100, "Longest that a request waits for Redis.", high=60_000, unit="MS")
    redis_namespace: str = _setting(
        "gateway",
        values.namespace,
        "NAME",
        "What every key begins with in Redis; fleets that must not share answers or limits have different ones.",
    )
    redis_memory_mb: int = _count(64, "Memory of the embedded Redis.", low=4, high=10**6, unit="MIB")
    queue_limit: int = _count(1024, "Requests that may wait; one more is answered 503.")
    max_batch: int = _count(64, "Most look-ups in one Redis round trip.", high=4096)
    batch_window_ms: float = _setting(
        0.0, values.number(0, 1000), "MS", "How long a look-up waits for company; 0 waits for nobody."
    )
    merge_max: int = _count(
        16, "Most choices of sampled twins that go to vLLM as one request with `n`; 1 merges none.", high=1024
    )
    embed_batch_items: int = _count(
        64,
        "Most inputs of embeddings, of whichever clients, in one request to an engine; 1: they go as they came.",
        high=2048,
    )
    embed_batch_tokens: int = _count(8192, "Most tokens of such a request, as far as they can be told beforehand.")
    embed_batch_window_ms: float = _setting(
        0.0, values.number(0, 1000), "MS", "How long an input waits for company; 0 waits for nobody."
    )
    embed_batch_calls: int = _count(
        8, "Such requests of one kind under way at each engine; what comes meanwhile goes up together.", high=1024
    )
    max_inflight: int = _setting(
        256,
        values.whole_or("auto", 1, 10**6),
        "N|auto",
        "Most requests under way at one engine; `auto` finds how many keep its batch full and its queue short.",
    )
    pace_ttft_ms: float = _setting(
        0.0,
        values.number(0, 10**6),
        "MS",
        "With `auto`: a time to first token at the engine that is not to be exceeded; 0: its queue alone decides.",
    )
    top_priority: Literal["high", "normal", "low"] = _choice(
        "normal", "high", "low", help="Highest `x-gateway-priority` of callers without a key of ours."
    )
    queue_patience: float = _seconds(
        10.0, "Waiting longer than this, a request may overtake classes and turns: one place in four.", low=0.1
    )
    queue_timeout: float = _seconds(
        300.0,
        "For room at an engine; what would wait longer is answered 503; 0 is no limit.",
    )
    max_body_bytes: int = _size(16 * MIB, "Largest request body; more is answered 413.")
    max_upload_bytes: int = _size(
        26 * MIB, "Largest multipart form that is passed through, as audio is; more is answered 413."
    )
    max_header_bytes: int = _size(16 * KIB, "Longest request line or header field.")
    rate_limit_rps: float = _rate("Requests a second of one caller, on average; 0 is no limit.")
    rate_limit_burst: int = _limit("Requests of one caller that may come at once; 0: as many as in one second.")
    rate_limit_tokens_per_minute: int = _limit("Tokens a minute of one caller, in and out; 0 is no limit.")
    rate_limit_streams: int = _limit("Requests of one caller under way at a time; 0 is no limit.")
    global_limit_rps: float = _rate("Requests a second of all callers together; 0 is no limit.")
    global_limit_burst: int = _limit("Requests of all callers that may come at once; 0: as many as in one second.")
    global_limit_tokens_per_minute: int = _limit("Tokens a minute of all callers together; 0 is no limit.")
    global_limit_streams: int = _limit("Requests of all callers under way at a time; 0 is no limit.")
    rate_limit_followers: Literal["generation", "reader"] = _choice(
        "generation", "reader", help="Who pays the tokens of a shared answer: who began it, once, or every reader."
    )
    rate_limit_assumed_tokens: int = _count(
        512, "Tokens reserved for an answer that may be longer, until its length is known.", high=10**6
    )
    max_headers: int = _count(100, "Most header fields of a request.", high=10_000)
    max_head_bytes: int = _size(64 * KIB, "Largest request line and header fields together; more is answered 431.")
    max_tokens_cap: int = _count(0, "Most tokens a request may ask for; 0 is no cap.", low=0)
    max_tokens_action: Literal["lower", "refuse"] = _choice(
        "lower", "refuse", help="What becomes of a request that asks for more tokens, or names no number."
    )
    max_messages: int = _count(
        0, "Most messages of a chat, prompts of a completion, inputs of an embedding; 0 is no limit.", low=0
    )
    max_prompt_chars: int = _count(0, "Most characters of a prompt, all messages together; 0 is no limit.", low=0)
    max_n: int = _count(0, "Most choices (`n`) a request may ask for; 0 is no limit.", low=0)
    max_best_of: int = _count(0, "Most candidates (`best_of`) a request may ask for; 0 is no limit.", low=0)
    memory_budget: int = _setting(
        0,
        values.size_or("auto", 16 * MIB),
        "BYTES|auto",
        "Memory for requests and answers together; `auto` is a quarter of the machine's or the cgroup's.",
    )
    head_timeout: float = _seconds(
        15.0, "For a request's line and headers to arrive, from the connection or their first byte.", low=0.1
    )
    body_timeout: float = _seconds(30.0, "For a request's body to arrive; 0 is no limit.")
    connect_timeout: float = _seconds(5.0, "For a connection to an engine.", low=0.01)
    first_token_timeout: float = _seconds(
        300.0, "For a stream's first token; 0 is no limit. A body that is not streamed has `total_timeout` alone."
    )
    token_timeout: float = _seconds(60.0, "Between two tokens; 0 is no limit.")
    total_timeout: float = _seconds(1800.0, "For a whole answer; 0 is no limit.")
    max_frame_bytes: int = _size(4 * MIB, "Largest single event of a stream.")
    max_flight_bytes: int = _size(64 * MIB, "Largest answer held in memory.")
    max_connections: int = _count(4096, "Most client connections at a time.")
    client_stall_timeout: float = _seconds(60.0, "For a client to take bytes that wait for it; 0 is no limit.")
    refresh_seconds: float = _seconds(10.0, "Between two looks at an engine's health and models.", low=0.1)
    api_keys_file: str = _file("The API keys that clients must show, TOML; none: no key is asked for.")
    metrics_key: bool = _setting(
        True, values.switch, "on|off", "Whether /metrics wants an operator's key where there are keys."
    )
    admin_port: int = _count(
        0,
        "A port of its own for operators: /metrics, /-/state, the page, flushes are then on no other; 0: none.",
        low=0,
        high=65535,
        unit="PORT",
    )
    admin_host: str = _setting("127.0.0.1", values.host, "ADDRESS", "Address that this port is listened on at.")
    trusted_proxies: tuple[str, ...] = _setting(
        (),
        values.networks,
        "CIDR",
        "Proxies whose X-Forwarded-For is believed, addresses or networks; `unix` for those of a Unix socket.",
    )
    allowed_hosts: tuple[str, ...] = _setting(
        (),
        values.hosts,
        "HOST",
        "Hosts that clients may ask for besides `host` and loopback's names: names, `*.example.com`, `*` for any; "
        "none given: any, but on a loopback address only those.",
    )
    proxy_protocol: bool = _switch(
        "Whether their connections open with the PROXY protocol, version 1 or 2, as L4 balancers write it."
    )
    deny_file: str = _file("What prompts must not hold: a text, or `re:` and a pattern, on each line.")
    deny_answers: bool = _switch("Whether answers are checked against the deny list too, as they stream.")
    deny_window: int = _count(
        256,
        "Longest match of a pattern in a streamed answer; so much of it is held back.",
        high=65_536,
        unit="CHARS",
    )
    tls_cert: str = _file("The certificate shown to clients, PEM; it may hold the key too; none: plain HTTP.")
    tls_key: str = _file("The private key of that certificate, PEM, unencrypted.")
    listen_unix: str = _file("A Unix socket to listen on instead of an address and a port.")
    listen_unix_mode: Literal["0600", "0660", "0666"] = _choice(
        "0600", "0660", "0666", help="Who may connect to that socket."
    )
    probe: Literal["on", "off"] = _choice(
        "on", "off", help="Whether an engine is asked, when it comes up, how its streams and its bodies compare."
    )
    page: bool = _setting(True, values.switch, "on|off", "Whether `/` is a page with the state and a playground.")
    embed_stub: bool = _switch("Whether `/embed` answers a marked stub where no engine can embed.")
    log_format: Literal["json", "text"] = _choice("json", "text", help="Form of the log lines on stdout.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        values.choice("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "Least level that is logged.",
    )
    log_prompts: bool = _switch("Whether prompts are written into the log.")
    trace: Literal["off", "otlp"] = _choice(
        "off", "otlp", help="Whether requests are traced by OpenTelemetry, to where the OTEL_* environment says."
    )
    drain_delay: float = _seconds(0.0, "From SIGTERM, as /ready says no, until no new request is taken.")
    drain_timeout: float = _seconds(25.0, "For requests under way to end after that; then they are ended.")
    warnings: tuple[str, ...] = ()  # no setting: what was odd about how they were given
    config: str = field(default="", compare=False)  # no setting: the file that some are from


def options() -> tuple[Option, ...]:
    """Every setting, in the order of the table."""
    return tuple(
        Option(
            **{
                "name": f.name,
                "default": f.default,
                "env": (f"GATEWAY_{f.name.upper()}",),
                "flag": "--" + f.name.replace("_", "-"),
                **f.metadata,
            }
        )
        for f in fields(Settings)
        if f.metadata
    )


def settings_table() -> str:
    """The table of settings in `ops/docs/settings.md`, in Markdown."""
    rows = ["| flag | environment | TOML | default | what it is |", "|---|---|---|---|---|"]
    for option in options():
        metavar = "" if option.is_switch else " " + option.metavar.replace("|", "\\|")
        flag = f"`{option.flag}{metavar}`"
        help = option.help.replace("|", "\\|")
        rows.append(f"| {flag} | `{option.env[0]}` | `{option.name}` | {option.shown_default} | {help} |")
    return "\n".join(rows) + "\n"

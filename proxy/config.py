"""Owns the settings: plain frozen data, each declared once with its flag, environment twin, bounds and help.
Must not know who uses them, nor read files, flags or the environment: `config_load.py` does that.
Called by everything that is given a setting; filled by config_load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

from proxy import config_values as values

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
        if isinstance(value, int) and self.metavar == "BYTES":
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
    """Every setting, at its default unless given. `proxy.config_load.load` fills it; tests make their own."""

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
    backend_insecure: bool = _switch("Whether https:// engines are trusted whatever their certificate says.")
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
    cache_ttl_seconds: int = _count(
        600, "How long a finished answer is kept; 0 stores none.", low=0, high=10**9, unit="SECONDS"
    )
    cache_max_entry_bytes: int = _size(MIB, "Largest answer that is stored.")
    cache_max_pending_bytes: int = _size(32 * MIB, "Answers that may wait to be written to Redis.")
    redis_timeout_ms: int = _count(100, "Longest that a request waits for Redis.", high=60_000, unit="MS")
    redis_memory_mb: int = _count(64, "Memory of the embedded Redis.", low=4, high=10**6, unit="MIB")
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
    queue_limit: int = _count(1024, "Requests that may wait; one more is answered 503.")
    max_batch: int = _count(64, "Most look-ups in one Redis round trip.", high=4096)
    batch_window_ms: float = _setting(
        0.0, values.number(0, 1000), "MS", "How long a look-up waits for company; 0 waits for nobody."
    )
    max_inflight: int = _count(256, "Most requests under way at one engine.")
    max_body_bytes: int = _size(16 * MIB, "Largest request body; more is answered 413.")
    max_header_bytes: int = _size(16 * KIB, "Longest request line or header field.")
    body_timeout: float = _seconds(30.0, "For a request's body to arrive; 0 is no limit.")
    connect_timeout: float = _seconds(5.0, "For a connection to an engine.", low=0.01)
    first_token_timeout: float = _seconds(300.0, "For an engine's first token; 0 is no limit.")
    token_timeout: float = _seconds(60.0, "Between two tokens; 0 is no limit.")
    total_timeout: float = _seconds(1800.0, "For a whole answer; 0 is no limit.")
    max_frame_bytes: int = _size(4 * MIB, "Largest single event of a stream.")
    max_flight_bytes: int = _size(64 * MIB, "Largest answer held in memory.")
    max_connections: int = _count(4096, "Most client connections at a time.")
    client_stall_timeout: float = _seconds(60.0, "For a client to take bytes that wait for it; 0 is no limit.")
    refresh_seconds: float = _seconds(10.0, "Between two looks at an engine's health and models.", low=0.1)
    embed_stub: bool = _switch("Whether `/embed` answers a marked stub where no engine can embed.")
    log_format: Literal["json", "text"] = _choice("json", "text", help="Form of the log lines on stdout.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        values.choice("debug", "info", "warning", "error"),
        "debug|info|warning|error",
        "Least level that is logged.",
    )
    log_prompts: bool = _switch("Whether prompts are written into the log.")
    shutdown_timeout: float = _seconds(10.0, "For requests under way to end at shutdown.")
    warnings: tuple[str, ...] = ()  # no setting: what was odd about how they were given


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
    """The README's table of settings, in Markdown."""
    rows = ["| flag | environment | TOML | default | what it is |", "|---|---|---|---|---|"]
    for option in options():
        metavar = "" if option.is_switch else " " + option.metavar.replace("|", "\\|")
        flag = f"`{option.flag}{metavar}`"
        help = option.help.replace("|", "\\|")
        rows.append(f"| {flag} | `{option.env[0]}` | `{option.name}` | {option.shown_default} | {help} |")
    return "\n".join(rows) + "\n"

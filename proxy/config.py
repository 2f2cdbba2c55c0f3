"""Owns the settings: plain frozen data, each declared once with its flag, environment twin, bounds and help.
Must not know who uses them, nor read files or the environment: `config_load.py` does that.
Called by everything that is given a setting; filled by config_load."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Option:
    """How a setting is given. `kind` names its parser in config_load."""

    name: str
    default: Any
    kind: str
    help: str
    env: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""

    @property
    def flag(self) -> str:
        return "--backend" if self.name == "backends" else "--" + self.name.replace("_", "-")


def _option(default: Any, kind: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "help": help, **more})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    host: str = _option("127.0.0.1", "text", "Address to listen on; loopback unless told otherwise.")
    port: int = _option(8080, "int", "Port to listen on; 0 takes any free one.", low=0, high=65535)
    backends: tuple[str, ...] = _option(
        (), "urls", "URL of an engine (vLLM); repeat for several. None: the embedded engine."
    )
    redis: str = _option(
        "auto",
        "redis",
        "`auto` (embedded), `off`, or a URL: redis://, rediss://, unix://.",
        env=("GATEWAY_REDIS_URL", "GATEWAY_REDIS"),
    )
    share: Literal["auto", "all", "off"] = _option(
        "auto", "choice", "Whose answers may be the same.", choices=("auto", "all", "off")
    )
    cache_ttl_seconds: int = _option(
        600, "int", "How long a finished answer is kept; 0 keeps none.", low=0, unit="s"
    )
    cache_max_entry_bytes: int = _option(MIB, "bytes", "Largest answer that is stored.", low=KIB, unit="bytes")
    cache_max_pending_bytes: int = _option(
        32 * MIB, "bytes", "Answers that may wait to be written to Redis.", low=KIB, unit="bytes"
    )
    redis_timeout_ms: int = _option(
        100, "int", "Longest that a request waits for Redis.", low=1, high=10000, unit="ms"
    )
    redis_memory_mb: int = _option(64, "int", "Memory of the embedded Redis.", low=4, unit="MiB")
    queue_limit: int = _option(1024, "int", "Requests that may wait; the next gets a 503.", low=1)
    max_batch: int = _option(64, "int", "Look-ups in one Redis round trip, at most.", low=1, high=4096)
    batch_window_ms: float = _option(
        0.0, "float", "How long a look-up waits for company; 0 waits for nobody.", low=0, high=1000, unit="ms"
    )
    max_inflight: int = _option(256, "int", "Requests under way at one engine, at most.", low=1)
    max_body_bytes: int = _option(16 * MIB, "bytes", "Largest request body.", low=KIB, unit="bytes")
    max_header_bytes: int = _option(16 * KIB, "bytes", "Longest request line or header.", low=KIB, unit="bytes")
    body_timeout: float = _option(30.0, "float", "For a request's body to arrive; 0 is no limit.", low=0, unit="s")
    connect_timeout: float = _option(5.0, "float", "For a connection to an engine.", low=0.01, unit="s")
    first_token_timeout: float = _option(
        300.0, "float", "For an engine's first token; 0 is no limit.", low=0, unit="s"
    )
    token_timeout: float = _option(60.0, "float", "Between two tokens; 0 is no limit.", low=0, unit="s")
    total_timeout: float = _option(1800.0, "float", "For a whole answer; 0 is no limit.", low=0, unit="s")
    max_frame_bytes: int = _option(4 * MIB, "bytes", "Largest single event of a stream.", low=KIB, unit="bytes")
    max_flight_bytes: int = _option(64 * MIB, "bytes", "Largest answer held in memory.", low=KIB, unit="bytes")
    max_connections: int = _option(4096, "int", "Client connections at a time.", low=1)
    client_stall_timeout: float = _option(
        60.0, "float", "For a client to take bytes that wait for it; 0 is no limit.", low=0, unit="s"
    )
    refresh_seconds: float = _option(10.0, "float", "Between two looks at each engine.", low=0.1, unit="s")
    embed_stub: bool = _option(False, "bool", "`/embed` answers a marked stub where no engine can embed.")
    log_format: Literal["json", "text"] = _option("json", "choice", "Form of the log.", choices=("json", "text"))
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info", "choice", "Least level that is logged.", choices=("debug", "info", "warning", "error")
    )
    log_prompts: bool = _option(False, "bool", "Write prompts into the log.")
    shutdown_timeout: float = _option(10.0, "float", "For requests under way to end at shutdown.", low=0, unit="s")
    warnings: tuple[str, ...] = field(default=(), metadata={})

    def replace(self, **changes: Any) -> Settings:
        return Settings(**{f.name: getattr(self, f.name) for f in fields(self)} | changes)


def options() -> list[Option]:
    """Every setting, in the order of the table."""
    return [
        Option(
            name=f.name,
            default=f.default,
            **{"env": (f"GATEWAY_{f.name.upper()}",), **f.metadata},
        )
        for f in fields(Settings)
        if f.metadata
    ]


def settings_table() -> str:
    """The README's table of settings, in Markdown."""
    rows = ["| flag | environment | default | what it is |", "|---|---|---|---|"]
    for option in options():
        default = _shown(option)
        rows.append(f"| `{option.flag}` | `{option.env[0]}` | {default} | {option.help} |")
    return "\n".join(rows) + "\n"


def _shown(option: Option) -> str:
    value = option.default
    if value == ():
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if option.unit == "bytes":
        for size, name in ((MIB, "MiB"), (KIB, "KiB")):
            if value % size == 0:
                return f"{value // size} {name}"
    if isinstance(value, int | float):
        return f"{value:g} {option.unit}".strip()
    return f"`{value}`"

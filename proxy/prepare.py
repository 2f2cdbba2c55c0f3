"""Owns what the settings name but do not hold: keys, deny list, certificates, secrets, read and checked at once.
Must not know requests, nor how a file is read again while it runs.
Called by the app at the start, by the reloads and by `--check-config`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from proxy.access.api_keys import read_keys
from proxy.access.client_ip import Trusted
from proxy.access.denylist.rules import read_deny_list
from proxy.access.identity import Identity
from proxy.access.rules import AccessRules
from proxy.config.redact import shown_path
from proxy.config.settings import Settings
from proxy.config.values import secret
from proxy.errors import SettingsError
from proxy.redis.client import files_of
from proxy.server.listener.listener import source_of
from proxy.server.listener.tls import ServerTls, server_context
from proxy.telemetry.certificates import expiry_of
from proxy.telemetry.otel import packages

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
MAX_FILE: Final = 16 * 1024 * 1024  # bytes


@dataclass(slots=True)
class Prepared:
    """What is in force now."""

    rules: AccessRules
    tls: ServerTls | None = None  # shown to clients
    tls_expires: float = 0.0  # Unix time
    backend_cert_expires: float = 0.0
    redis_cert_expires: float = 0.0
    backend_key: str = field(default="", repr=False)
    warnings: list[str] = field(default_factory=list)


def prepare(settings: Settings) -> Prepared:
    """Read all of it. Raises SettingsError that names every problem."""
    problems = conflicts(settings)
    made = Prepared(AccessRules(Identity(None, Trusted(settings.trusted_proxies), source_of)))

    def attempt(step: Callable[[], object]) -> None:
        try:
            step()
        except SettingsError as e:
            problems.append(str(e))

    attempt(lambda: _keys(settings, made))
    attempt(lambda: _deny(settings, made))
    attempt(lambda: _tls(settings, made))
    attempt(lambda: _backend_key(settings, made))
    attempt(lambda: _client_certs(settings, made))
    if settings.trace == "otlp":
        attempt(lambda: packages(os.environ))
    if problems:
        raise SettingsError("\n".join(problems))
    ring = made.rules.identity.ring
    if ring is not None and not ring.has_operator and settings.metrics_key:
        made.warnings.append(
            f'api_keys_file = {settings.api_keys_file!r}: no key has role = "operator", so nobody may read'
            " /metrics (--no-metrics-key opens it), the state or the page's playground"
        )
    if ring is None and settings.admin_port and settings.admin_host not in LOOPBACK:
        made.warnings.append(
            f"admin_host = {settings.admin_host}: without api_keys_file all who reach it are operators"
        )
    if settings.forward_authorization and settings.api_keys_file:
        made.warnings.append("forward_authorization: engines get the keys of this gateway's callers")
    if settings.listen_unix and settings.port != Settings().port:
        made.warnings.append(f"port = {settings.port}: nothing listens there, listen_unix is given")
    return made


def conflicts(settings: Settings) -> list[str]:
    """Settings that cannot be meant together."""
    both = (settings.backend_api_key and settings.backend_api_key_file) != ""
    held = settings.backend_api_key or settings.backend_api_key_file
    found = [
        (both, "backend_api_key and backend_api_key_file are both given: give one"),
        (
            settings.forward_authorization and held,
            "forward_authorization sends the client's key to engines, backend_api_key one of ours: give one",
        ),
        (
            settings.forward_authorization and settings.share_scope == "global",
            "forward_authorization asks engines by credential, share_scope = global answers all alike: give one",
        ),
        (
            settings.admin_port and settings.admin_port == settings.port and not settings.listen_unix,
            "admin_port is the port: operators need one of their own",
        ),
        (
            settings.admin_host != Settings().admin_host and not settings.admin_port,
            "admin_host needs admin_port: nothing else listens there",
        ),
        (settings.deny_answers and not settings.deny_file, "deny_answers needs deny_file: there is no list"),
        (
            settings.proxy_protocol and not settings.trusted_proxies,
            "proxy_protocol needs trusted_proxies: the balancers whose word is taken",
        ),
        (
            settings.proxy_protocol and settings.tls_cert,
            "proxy_protocol comes before TLS and cannot be read there: end TLS at the balancer, or leave one out",
        ),
        (
            settings.rate_limit_burst and not (settings.rate_limit_rps or settings.api_keys_file),
            "rate_limit_burst needs rate_limit_rps: alone it limits nothing",
        ),
        (
            settings.global_limit_burst and not settings.global_limit_rps,
            "global_limit_burst needs global_limit_rps: alone it limits nothing",
        ),
        (
            settings.pace_ttft_ms and settings.max_inflight,
            "pace_ttft_ms needs max_inflight = auto: a number that is set is not moved",
        ),
        (
            settings.max_tokens_action == "refuse" and not settings.max_tokens_cap,
            "max_tokens_action = refuse needs max_tokens_cap: there is no cap that a request could be over",
        ),
        (settings.tls_key and not settings.tls_cert, "tls_key is given without tls_cert, its certificate"),
    ]
    return [problem for wrong, problem in found if wrong]


def _keys(settings: Settings, made: Prepared) -> None:
    path = settings.api_keys_file
    if path:
        made.rules.identity.renew(read_keys(read_file("api_keys_file", path, made.warnings), path))


def _deny(settings: Settings, made: Prepared) -> None:
    if settings.deny_file:
        made.rules.renew_deny_list(read_deny_list(read_file("deny_file", settings.deny_file), settings.deny_file))


def _tls(settings: Settings, made: Prepared) -> None:
    if settings.tls_cert:
        made.tls = ServerTls(server_context(settings.tls_cert, settings.tls_key))
        made.tls_expires = expiry_of("tls_cert", settings.tls_cert)
        _warn_if_open("tls_key", settings.tls_key or settings.tls_cert, made.warnings)


def _client_certs(settings: Settings, made: Prepared) -> None:
    if settings.backend_cert:
        made.backend_cert_expires = expiry_of("backend_cert", settings.backend_cert)
    redis_cert = files_of(settings.redis).get("ssl_certfile")
    if redis_cert is not None:
        made.redis_cert_expires = expiry_of("redis ssl_certfile", redis_cert)


def _backend_key(settings: Settings, made: Prepared) -> None:
    made.backend_key = settings.backend_api_key
    if settings.backend_api_key_file:
        made.backend_key = read_backend_key(settings.backend_api_key_file, made.warnings)
    key = made.backend_key
    if len(key) > 1 and key[0] in ("'", '"') and key[0] == key[-1]:
        made.warnings.append("backend_api_key: it is in quotes, and they are sent to engines as a part of it")


def read_backend_key(path: str, warnings: list[str] | None = None) -> str:
    """The key that engines ask for. Raises SettingsError, whose text has none of it."""
    try:
        key = secret(read_file("backend_api_key_file", path, warnings))
    except ValueError as e:
        raise SettingsError(f"backend_api_key_file = {path!r}: {e}") from None
    if not key:
        raise SettingsError(f"backend_api_key_file = {path!r}: holds no key")
    return key


def read_file(name: str, path: str, warnings: list[str] | None = None) -> str:
    """A file's text. With `warnings` it holds secrets, and a file that others may read is warned of."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as e:
        raise SettingsError(f"{name} = {shown_path(path)}: {e.strerror or e}") from None
    if len(data) > MAX_FILE:
        raise SettingsError(f"{name} = {path!r}: is larger than {MAX_FILE} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise SettingsError(f"{name} = {path!r}: is not UTF-8 (byte {e.start})") from None
    if warnings is not None:
        _warn_if_open(name, path, warnings)
    return text


def _warn_if_open(name: str, path: str, warnings: list[str]) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o077:
        warnings.append(f"{name} = {path!r}: others may read it (mode {mode:04o}); chmod 600 it")

"""Reads what the settings name but do not hold (keys, deny list, certificates, secrets), at the start and whenever
a file has changed. Loading runs in a thread and changes nothing; what it returns puts the new content in force, on
the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

from proxy.access import AccessPolicy, AccessRules, Authenticator, TrustedProxies, read_keys
from proxy.access.denylist import read_deny_list
from proxy.config import (
    ModelNames,
    Settings,
    alias_conflicts,
    conflicts,
    model_names,
    read_file,
    salt_secret,
    secret,
    warn_if_open,
)
from proxy.config.file_watch import Take, Watched
from proxy.errors import SettingsError
from proxy.redis import Deployment, files_of, read_url
from proxy.server import LargeRequests, ServerTls, check_socket_path, server_context, source_of
from proxy.telemetry import Certificates, Log, expiry_of, packages
from proxy.upstream import Backends, Fleet
from proxy.upstream.http import tls_context

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass(slots=True)
class Prepared:
    """The content that is in effect now."""

    rules: AccessRules
    tls: ServerTls | None = None  # shown to clients
    tls_expires: float = 0.0  # Unix time
    backend_cert_expires: float = 0.0
    redis_cert_expires: float = 0.0
    backend_key: str = field(default="", repr=False)
    warnings: list[str] = field(default_factory=list)


def prepare(settings: Settings) -> Prepared:
    """Read all files that the settings name. Raises SettingsError with every problem."""
    problems = conflicts(settings)
    prepared = Prepared(AccessRules(Authenticator(None, TrustedProxies(settings.trusted_proxies), source_of)))
    prepared.rules.renew_names(model_names(settings.models, settings.model_fallbacks))

    def attempt(step: Callable[[], object]) -> None:
        try:
            step()
        except SettingsError as e:
            problems.append(str(e))

    attempt(lambda: _keys(settings, prepared))
    attempt(lambda: _deny(settings, prepared))
    attempt(lambda: _tls(settings, prepared))
    attempt(lambda: _backend_key(settings, prepared))
    attempt(lambda: prepared.rules.renew_salt(read_salt(settings, prepared.warnings)))
    attempt(lambda: _client_certs(settings, prepared))
    attempt(lambda: _redis(settings, prepared))
    attempt(lambda: _listen_unix(settings))
    attempt(lambda: _record_file(settings))
    if settings.trace == "otlp":
        attempt(lambda: packages(os.environ))
    if problems:
        raise SettingsError("\n".join(problems))
    ring = prepared.rules.identity.ring
    if ring is not None and not ring.has_operator and settings.metrics_key:
        prepared.warnings.append(
            f'api_keys_file = {settings.api_keys_file!r}: no key has role = "operator", so nobody may read'
            " /metrics (--no-metrics-key opens it), the state or the page's playground"
        )
    if ring is None and settings.admin_port and settings.admin_host not in LOOPBACK:
        prepared.warnings.append(
            f"admin_host = {settings.admin_host}: without api_keys_file everyone who reaches it is an operator"
        )
    if ring is None and not settings.listen_unix and settings.host not in LOOPBACK:
        prepared.warnings.append(
            f"host = {settings.host}: without api_keys_file everyone who reaches it may use the engines"
        )
    if settings.forward_authorization and settings.api_keys_file:
        prepared.warnings.append("forward_authorization: engines receive the API keys of this gateway's callers")
    if "*" in settings.cors_origins:
        keys = "" if ring is not None else ", and without API keys use the engines"
        prepared.warnings.append(f"cors_origins = *: any web page that a user opens may read the answers{keys}")
    if settings.listen_unix and settings.port != Settings().port:
        prepared.warnings.append(f"port = {settings.port}: not used, listen_unix is given")
    return prepared


def _keys(settings: Settings, prepared: Prepared) -> None:
    path = settings.api_keys_file
    if path:
        text = read_file("api_keys_file", path, prepared.warnings)
        prepared.rules.identity.renew(read_keys(text, f"api_keys_file: {path}"))


def _deny(settings: Settings, prepared: Prepared) -> None:
    if settings.deny_file:
        text = read_file("deny_file", settings.deny_file)
        prepared.rules.renew_deny_list(read_deny_list(text, f"deny_file: {settings.deny_file}"))


def _tls(settings: Settings, prepared: Prepared) -> None:
    if settings.tls_cert:
        prepared.tls = ServerTls(server_context(settings.tls_cert, settings.tls_key))
        prepared.tls_expires = expiry_of("tls_cert", settings.tls_cert)
        warn_if_open("tls_key", settings.tls_key or settings.tls_cert, prepared.warnings)


def read_salt(settings: Settings, warnings: list[str] | None = None) -> bytes:
    """The secret of `cache_salt`; empty: none. Raises SettingsError, whose text does not quote it."""
    text, path = settings.cache_salt, settings.cache_salt_file
    if path:
        try:
            text = salt_secret(read_file("cache_salt_file", path, warnings))
        except ValueError as e:
            raise SettingsError(f"cache_salt_file = {path!r}: {e}") from None
        if not text or text == "auto":
            raise SettingsError(f"cache_salt_file = {path!r}: holds no secret")
    return os.urandom(32) if text == "auto" else text.encode()


def _client_certs(settings: Settings, prepared: Prepared) -> None:
    ca, cert, key = settings.backend_ca, settings.backend_cert, settings.backend_key
    if ca or cert or key:
        tls_context(ca=ca, cert=cert, key=key, insecure=settings.backend_insecure)
    if settings.backend_cert:
        prepared.backend_cert_expires = expiry_of("backend_cert", settings.backend_cert)


def _redis(settings: Settings, prepared: Prepared) -> None:
    """Check the URLs of Redis: each problem names its setting, and a wrong option or a missing file."""
    problems = []
    expiries = []
    for name, url in (("redis", settings.redis), ("state_redis", settings.state_redis)):
        try:
            if url not in ("", "auto", "off"):
                read_url(url)
            cert = files_of(url).get("ssl_certfile")
            expiries += [expiry_of("redis ssl_certfile", cert)] if cert is not None else []
        except SettingsError as e:
            problems.append(f"{name}: {e}")
    if problems:
        raise SettingsError("\n".join(problems))
    prepared.redis_cert_expires = min(expiries, default=0.0)


def _listen_unix(settings: Settings) -> None:
    folder = os.path.dirname(settings.listen_unix)
    if folder and not os.path.isdir(folder):
        raise SettingsError(f"listen_unix = {settings.listen_unix!r}: there is no folder {folder}")
    if settings.listen_unix:
        check_socket_path(settings.listen_unix)


def _record_file(settings: Settings) -> None:
    """Check that it may be written, without making it."""
    path = settings.record_file
    folder = os.path.dirname(path) or "."
    if path and os.path.isdir(path):
        raise SettingsError(f"record_file = {path!r}: is a folder")
    if path and not os.path.isdir(folder):
        raise SettingsError(f"record_file = {path!r}: there is no folder {folder}")
    if path and not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise SettingsError(f"record_file = {path!r}: may not be written by this user")


def _backend_key(settings: Settings, prepared: Prepared) -> None:
    prepared.backend_key = settings.backend_api_key
    if settings.backend_api_key_file:
        prepared.backend_key = read_backend_key(settings.backend_api_key_file, prepared.warnings)
    key = prepared.backend_key
    if len(key) > 1 and key[0] in ("'", '"') and key[0] == key[-1]:
        prepared.warnings.append("backend_api_key: it is quoted, and the quotes are sent to engines too")


def read_backend_key(path: str, warnings: list[str] | None = None) -> str:
    """The API key of the engines. Raises SettingsError, whose text does not quote it."""
    try:
        key = secret(read_file("backend_api_key_file", path, warnings))
    except ValueError as e:
        raise SettingsError(f"backend_api_key_file = {path!r}: {e}") from None
    if not key:
        raise SettingsError(f"backend_api_key_file = {path!r}: holds no key")
    return key


# -- reload at run time ---------------------------------------------------------------------------------


class EngineReload:
    """Reloads the settings file. Only the engines and the names of models change at run time; other changes are
    reported as needing a restart."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Sequence[str]], Awaitable[None]],
        log: Log,
        rename: Callable[[Settings], str] = lambda settings: "",
    ) -> None:
        """`rename` puts the names of models in effect and says what changed; it raises SettingsError."""
        self._settings = settings
        self._rename = rename
        self._read = read  # from all sources: a flag still takes precedence over the file
        self._apply = apply
        self._log = log
        self._engines = tuple(settings.backends)
        self._new: tuple[str, ...] | None = None
        self._taken = asyncio.Event()

    def load(self) -> Callable[[], str]:
        """Read the settings, in a thread. Returns the Take that puts them in effect. Raises SettingsError."""
        settings = self._read()
        if self._settings.backends and not settings.backends:
            raise SettingsError("`backends` must name at least one engine while running")
        return lambda: self.take(settings)

    def take(self, settings: Settings) -> str:
        """Have the names of models changed, and the engines by `run`; log other changed settings as needing a
        restart. Raises SettingsError, and has changed nothing then."""
        renamed = self._rename(settings)
        ours = {"backends", "warnings", "models", "model_fallbacks"}
        others = [
            f.name
            for f in fields(Settings)
            if f.name not in ours and getattr(settings, f.name) != getattr(self._settings, f.name)
        ]
        if others:
            self._log.event("warning", "settings need a restart", detail=", ".join(others))
        if not settings.backends:  # the embedded engine stays
            return renamed or "nothing that can change at run time"
        self._new = settings.backends
        self._taken.set()
        before, self._engines = self._engines, tuple(settings.backends)
        added, removed = set(self._engines) - set(before), set(before) - set(self._engines)
        return f"engines: {len(added)} added, {len(removed)} removed{renamed and f'; {renamed}'}"

    async def run(self) -> None:
        """Apply changes until cancelled. Apart from the file watch: checking a new engine may take time."""
        while True:
            await self._taken.wait()
            self._taken.clear()
            urls = self._new
            assert urls is not None  # it is set before the event is
            await self._apply(urls)


class Naming:
    """Puts the names of models in effect, and compares them with the models that engines list."""

    def __init__(self, rules: AccessRules, backends: Backends, renewed: Callable[[], None], log: Log) -> None:
        """`renewed` is called after a change."""
        self._rules = rules
        self._backends = backends
        self._renewed = renewed
        self._log = log

    def begin(self, settings: Settings, *, strict: bool) -> None:
        """Check the names at the start. Raises SettingsError where `strict`; else their problems are logged."""
        wrong, doubtful = self._problems(settings, self._rules.names)
        if strict and wrong:
            raise SettingsError("\n".join(wrong))
        self._tell(wrong + doubtful)

    def renew(self, settings: Settings) -> str:
        """Use the names of these settings. Says what changed. Raises SettingsError, and has changed nothing
        then."""
        before, names = self._rules.names, model_names(settings.models, settings.model_fallbacks)
        if names == before:
            return ""
        wrong, doubtful = self._problems(settings, names)
        wrong += alias_conflicts(settings.models, settings.model_fallbacks)
        if wrong:
            raise SettingsError("\n".join(wrong))
        self._tell(doubtful)
        self._rules.renew_names(names)
        self._renewed()
        return f"{len(names.aliases)} aliases, fallbacks of {len(names.standbys)} models"

    def _tell(self, problems: list[str]) -> None:
        for problem in problems:
            self._log.event("warning", "settings", detail=problem)

    def _problems(self, settings: Settings, names: ModelNames) -> tuple[list[str], list[str]]:
        """What is wrong; and what is wrong unless an engine that was not asked yet, or is down, says otherwise."""
        engines = self._backends.all
        served = set().union(*(backend.served for backend in engines))
        wrong = [
            f"models: {name!r} is a model of an engine too: give the alias another name"
            for name in names.aliases
            if name in served
        ]
        known = all(backend.up and backend.models for backend in engines)
        if settings.backends:
            known = known and {backend.name for backend in engines} == set(settings.backends)
        # A name that leads to another name is not told: the other one is.
        uses = [
            (f"models: {name!r}", model)
            for name, shares in settings.models
            for model, _ in shares
            if model not in names.aliases
        ]
        uses += [
            (f"model_fallbacks: {model!r}", each)
            for model, others in names.standbys.items()
            for each in (model, *others)
        ]
        unknown = [
            f"{use} names {model!r}, which no engine lists{'' if known else ' (not every engine has answered)'}"
            for use, model in dict.fromkeys(uses)
            if model not in served
        ]
        return (wrong + unknown, []) if known else (wrong, unknown)


def paths_of(settings: Settings) -> list[str]:
    """The paths of all watched files that settings name."""
    return [
        settings.config,
        settings.api_keys_file,
        settings.deny_file,
        settings.tls_cert,
        settings.tls_key,
        settings.backend_ca,
        settings.backend_cert,
        settings.backend_key,
        settings.backend_api_key_file,
        settings.cache_salt_file,
        *_redis_files(settings),
    ]


def _redis_files(settings: Settings) -> tuple[str, ...]:
    return tuple(path for url in (settings.redis, settings.state_redis) for path in files_of(url).values())


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReloads:
    """Loads each watched file and puts its content in effect."""

    settings: Settings
    live: Prepared
    fleet: Fleet
    access_policy: AccessPolicy | None
    large: LargeRequests
    certificates: Certificates
    redis: Sequence[tuple[str, Deployment]]  # each with its URL
    reload: EngineReload | None
    hide: Callable[[list[str]], None]
    """Gets secrets that the log must not show."""

    def watched(self) -> list[Watched]:
        """The files that settings name, each with its loader."""
        settings = self.settings
        tls = (settings.backend_ca, settings.backend_cert, settings.backend_key)
        every: list[tuple[str, tuple[str, ...], Callable[[], Take]]] = [
            ("api_keys_file", (settings.api_keys_file,), self._keys),
            ("deny_file", (settings.deny_file,), self._deny),
            ("tls_cert", (settings.tls_cert, settings.tls_key), self._tls),
            ("backend_cert" if settings.backend_cert else "backend_ca", tls, self._backend_tls),
            ("backend_api_key_file", (settings.backend_api_key_file,), self._backend_key),
            ("cache_salt_file", (settings.cache_salt_file,), self._salt),
            ("redis", _redis_files(settings), self._redis),
        ]
        if self.reload is not None:
            every.append(("config", (settings.config,), self.reload.load))
        return [Watched(name, tuple(filter(None, paths)), load) for name, paths, load in every if any(paths)]

    def _keys(self) -> Take:
        path = self.settings.api_keys_file
        ring, before = read_keys(read_file("api_keys_file", path), path), self.live.rules.identity.ring
        changed = "" if before is None else ring.changed_from(before)  # in the thread: there may be 100,000 keys

        def take() -> str:
            self.live.rules.identity.renew(ring)
            if self.access_policy is not None:
                self.access_policy.keyed.end()
            return changed

        return take

    def _deny(self) -> Take:
        path = self.settings.deny_file
        deny = read_deny_list(read_file("deny_file", path), path)

        def take() -> str:
            self.live.rules.renew_deny_list(deny)
            self.large.renew()
            return f"{len(deny)} rules"

        return take

    def _tls(self) -> Take:
        settings = self.settings
        context = server_context(settings.tls_cert, settings.tls_key)
        expires = expiry_of("tls_cert", settings.tls_cert)

        def take() -> str:
            if self.live.tls is not None:
                self.live.tls.renew(context)
            return self._expires("tls_cert", expires)

        return take

    def _backend_tls(self) -> Take:
        settings = self.settings
        cert = settings.backend_cert
        context = tls_context(
            ca=settings.backend_ca, cert=cert, key=settings.backend_key, insecure=settings.backend_insecure
        )
        expires = expiry_of("backend_cert", cert) if cert else None

        def take() -> str:
            self.fleet.renew(tls=context)
            return "trusted certificates" if expires is None else self._expires("backend_cert", expires)

        return take

    def _backend_key(self) -> Take:
        path = self.settings.backend_api_key_file
        key = read_backend_key(path)

        def take() -> str:
            self.hide([key])
            self.fleet.renew(api_key=key)
            return "the API key of engines"

        return take

    def _salt(self) -> Take:
        salt = read_salt(self.settings)

        def take() -> str:
            self.hide([salt.decode()])
            self.live.rules.renew_salt(salt)
            return "the secret of cache_salt"

        return take

    def _redis(self) -> Take:
        read = [(deployment, read_url(url)) for url, deployment in self.redis if files_of(url)]
        certs = [files["ssl_certfile"] for url, _ in self.redis if "ssl_certfile" in (files := files_of(url))]
        expires = min((expiry_of("redis ssl_certfile", cert) for cert in certs), default=None)

        def take() -> str:
            for deployment, url in read:
                deployment.renew(url)
            return "trusted certificates" if expires is None else self._expires("redis", expires)

        return take

    def _expires(self, name: str, expires: float) -> str:
        self.certificates.renew(name, expires)
        return "its certificate"

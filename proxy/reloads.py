"""Owns which files are read again while the gateway runs: how each is loaded, and what puts it in force.
Must not know how a change is noticed. What loads runs in a thread and changes nothing; what it returns runs on the
loop. Called by the app, which gives it to the watch on files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from proxy.access.api_keys import read_keys
from proxy.access.denylist.rules import read_deny_list
from proxy.access.policy import Gate
from proxy.config.file_watch import Take, Watched
from proxy.config.settings import Settings
from proxy.prepare import Prepared, read_backend_key, read_file
from proxy.redis.client import Address, address, files_of
from proxy.reload import Reload
from proxy.server.listener.tls import server_context
from proxy.server.offload.large import LargeRequests
from proxy.telemetry.certificates import Certificates, expiry_of
from proxy.upstream.fleet import Fleet
from proxy.upstream.http.dial import tls_context


class OnRedis(Protocol):
    """What has connections to Redis."""

    def renew(self, where: Address) -> None: ...


def paths_of(settings: Settings) -> list[str]:
    """Every file that a setting names and that is watched."""
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
        *files_of(settings.redis).values(),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloads:
    """What each file's content goes into."""

    settings: Settings
    live: Prepared
    fleet: Fleet
    gate: Gate | None
    large: LargeRequests
    certificates: Certificates
    redis: Sequence[OnRedis]
    reload: Reload | None
    hide: Callable[[list[str]], None]
    """Told of secrets, which the log is to show no more."""

    def watched(self) -> list[Watched]:
        """The files that there are, each with what loads it."""
        settings = self.settings
        tls = (settings.backend_ca, settings.backend_cert, settings.backend_key)
        every: list[tuple[str, tuple[str, ...], Callable[[], Take]]] = [
            ("api_keys_file", (settings.api_keys_file,), self._keys),
            ("deny_file", (settings.deny_file,), self._deny),
            ("tls_cert", (settings.tls_cert, settings.tls_key), self._tls),
            ("backend_cert" if settings.backend_cert else "backend_ca", tls, self._backend_tls),
            ("backend_api_key_file", (settings.backend_api_key_file,), self._backend_key),
            ("redis", tuple(files_of(settings.redis).values()), self._redis),
        ]
        if self.reload is not None:
            every.append(("config", (settings.config,), self.reload.load))
        return [Watched(name, tuple(filter(None, paths)), load) for name, paths, load in every if any(paths)]

    def _keys(self) -> Take:
        path = self.settings.api_keys_file
        ring, before = read_keys(read_file("api_keys_file", path), path), self.live.rules.identity.ring
        changed = "" if before is None else ring.changed_from(before)  # here: there may be 100,000 of them

        def take() -> str:
            self.live.rules.identity.renew(ring)
            if self.gate is not None:
                self.gate.keyed.end()
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
            return "the key that engines are sent"

        return take

    def _redis(self) -> Take:
        url = self.settings.redis
        where = address(url)
        cert = files_of(url).get("ssl_certfile")
        expires = expiry_of("redis ssl_certfile", cert) if cert is not None else None

        def take() -> str:
            for link in self.redis:
                link.renew(where)
            return "trusted certificates" if expires is None else self._expires("redis", expires)

        return take

    def _expires(self, name: str, expires: float) -> str:
        self.certificates.renew(name, expires)
        return "its certificate"

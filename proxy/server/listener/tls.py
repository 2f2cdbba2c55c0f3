"""TLS for clients: the context, its certificate, and the replacement of both at a reload."""

from __future__ import annotations

import ssl

from proxy.config import no_password, pair_problem
from proxy.errors import SettingsError


def server_context(cert: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, HTTP/1.1. Raises SettingsError where the pair cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key or None, password=no_password("tls_key"))
    except OSError as e:  # ssl.SSLError is one
        raise SettingsError(pair_problem(("tls_cert", cert), ("tls_key", key), e)) from None
    return context


class ServerTls:
    """A listener's context. Each handshake takes the certificate that is in force as it begins. None is loaded
    into a context in use: a file that changes meanwhile would leave it with a certificate and no key for it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self._in_force = context
        context.sni_callback = self._choose

    def renew(self, context: ssl.SSLContext) -> None:
        """For connections from now on; those that are open keep theirs."""
        self._in_force = context

    def _choose(self, connection: ssl.SSLObject, name: str | None, listener: ssl.SSLContext) -> None:
        if self._in_force is not listener:
            connection.context = self._in_force

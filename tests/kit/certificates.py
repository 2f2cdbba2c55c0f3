"""Owns certificates made for one test run: an authority, and what it signs. Made by the `openssl` program, so
that no dependency is needed for a dozen tests.
Must not know TLS contexts of the proxy, nor which test uses what. Called by tests of TLS."""

from __future__ import annotations

import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.kit.missing import OPENSSL, lacking
from tests.kit.patience import run_process

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


@dataclass(frozen=True)
class Issued:
    cert: Path
    key: Path


class Authority:
    """Its own certificate is `pem`; `issue` makes a host's (or a client's) signed by it."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self.pem, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        extensions = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
        _openssl("req", "-x509", *EC, "-nodes", "-keyout", self._key, "-out", self.pem, "-subj", f"/CN={name}",
                 "-days", "1", *extensions)  # fmt: skip

    def issue(self, name: str, *, days: int = 1) -> Issued:
        """For the host `name`; with `days` under 0 it has expired."""
        stem = f"{name}{days}"
        key, request, cert, extensions = (self._folder / f"{stem}.{e}" for e in ("key", "csr", "pem", "ext"))
        extensions.write_text(f"subjectAltName=DNS:{name}\n")
        _openssl("req", *EC, "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl("x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self._key, "-days", days,
                 "-extfile", extensions, "-out", cert)  # fmt: skip
        return Issued(cert, key)


def encrypt(key: Path) -> Path:
    """The same key behind a password."""
    locked = key.with_suffix(".locked")
    _openssl("pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked)
    return locked


def server_context(issued: Issued, *, clients_of: Path | None = None) -> ssl.SSLContext:
    """An engine's side; with `clients_of` it wants a client certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.cert, issued.key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if clients_of is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients_of)
    return context


def _openssl(*args: object) -> None:
    if shutil.which("openssl") is None:
        lacking("openssl", OPENSSL)
    run_process(["openssl", *map(str, args)], check=True, capture_output=True, seconds=30)

"""Owns certificates made for one test run: an authority, what it signs, and what is its own authority.
Must not know TLS contexts of the proxy, nor which test uses what. Called by tests of TLS."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_USES: Final = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)


@dataclass(frozen=True)
class Issued:
    cert: Path
    key: Path


class Authority:
    """Its own certificate is `pem`; `issue` makes a host's (or a client's) signed by it."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self.pem, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        self._private = _new_key(self._key)
        self._name = _name(name)
        builder = _authority(_builder(self._name, self._private, self._name, self._private, days=1))
        builder = builder.add_extension(x509.KeyUsage(**_USES | {"key_cert_sign": True}), critical=True)
        self.pem.write_bytes(_signed(builder, self._private))

    def issue(self, name: str, *, days: int = 1) -> Issued:
        """For the host `name`; with `days` under 0 it has expired."""
        stem = f"{name}{days}"
        key, cert = self._folder / f"{stem}.key", self._folder / f"{stem}.pem"
        builder = _builder(_name(name), _new_key(key), self._name, self._private, days=days)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        cert.write_bytes(_signed(builder, self._private))
        return Issued(cert, key)


def self_signed(cert: Path, key: Path) -> None:
    """A certificate for localhost and 127.0.0.1 that is its own authority, written to these files."""
    private, name = _new_key(key), _name("localhost")
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = _authority(_builder(name, private, name, private, days=2))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    cert.write_bytes(_signed(builder, private))


def encrypt(key: Path) -> Path:
    """The same key behind a password."""
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    locked = key.with_suffix(".locked")
    locked.write_bytes(_pem(private, serialization.BestAvailableEncryption(b"x")))
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


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(_pem(key, serialization.NoEncryption()))
    return key


def _pem(key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=days)
    public = issuer_key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends - datetime.timedelta(days=1)))
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )


def _authority(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> bytes:
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

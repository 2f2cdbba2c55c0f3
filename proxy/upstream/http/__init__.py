"""The HTTP/1.1 client for engines: a `Pool` of `Connection`s for each engine, dialled by `dial`, whose
responses a `ResponseParser` reads by the framing of their heads. A `ReadBudget` bounds the bytes per event loop
iteration; `relocation` rewrites headers that name an engine's address."""

from proxy.upstream.http.connection import Connection
from proxy.upstream.http.dial import ConnectionRefused, tls_context
from proxy.upstream.http.pool import HOP_BY_HOP
from proxy.upstream.http.read_budget import ReadBudget
from proxy.upstream.http.relocation import PLACES, engine_at, told
from proxy.upstream.http.response import KnownHead

__all__ = [
    "HOP_BY_HOP",
    "PLACES",
    "Connection",
    "ConnectionRefused",
    "KnownHead",
    "ReadBudget",
    "engine_at",
    "tls_context",
    "told",
]

"""Embeddings across clients: inputs of several requests in one array call to an engine.

An `EmbeddingRequest` is taken apart into `EmbeddingItem`s, one an input. Items that another request wants already
are joined, the others are looked up in the `ItemStore`, and what is not there goes to an engine in an `ArrayCall`
with items of the same `BatchKey`. `EmbedQueue` keeps callers' turns, `Delivery` hands vectors out, and the
`Embedder` drives all of it.
"""

from proxy.flights.embeddings.builder import closing, embedder_for
from proxy.flights.embeddings.embedder import Embedder

__all__ = [
    "Embedder",
    "closing",
    "embedder_for",
]

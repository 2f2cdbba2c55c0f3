"""TODO"""

from proxy.flights.embeddings.builder import closing, embedder_for
from proxy.flights.embeddings.embedder import Embedder

__all__ = [
    "Embedder",
    "closing",
    "embedder_for",
]

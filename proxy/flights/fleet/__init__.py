"""Flights across processes and machines: identical requests that arrive at several gateways are one generation.

A `Node` is one gateway process. It **leads** a flight that its engine feeds, and **follows** one that another node
leads. A `Publication` puts a flight into Redis while another node reads it. README.md has the protocol.
"""

from proxy.flights.fleet.following import INTEREST, POLL, SILENCE
from proxy.flights.fleet.node import BEAT, LIFE, TICK, Host, Node
from proxy.flights.fleet.publication import MOST_LOGS

__all__ = ["BEAT", "INTEREST", "LIFE", "MOST_LOGS", "POLL", "SILENCE", "TICK", "Host", "Node"]

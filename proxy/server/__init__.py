"""TODO"""

from proxy.server.bind import hosts_of, listen, listen_for_operators
from proxy.server.gateway import Gateway
from proxy.server.gauges import state_gauges
from proxy.server.handlers.flush import Flush
from proxy.server.listener.descriptors import in_use, limit, places, raise_limit
from proxy.server.listener.listener import Listener, source_of
from proxy.server.listener.timeouts import Times
from proxy.server.listener.tls import ServerTls, server_context
from proxy.server.offload.large import LargeRequests
from proxy.server.page.handlers import Page
from proxy.server.page.state import Sources
from proxy.server.tracing import Tracing

__all__ = [
    "Flush",
    "Gateway",
    "LargeRequests",
    "Listener",
    "Page",
    "ServerTls",
    "Sources",
    "Times",
    "Tracing",
    "hosts_of",
    "in_use",
    "limit",
    "listen",
    "listen_for_operators",
    "places",
    "raise_limit",
    "server_context",
    "source_of",
    "state_gauges",
]

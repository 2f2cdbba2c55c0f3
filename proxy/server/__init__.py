"""The client's side of a request: accept, parse, route, respond, drain, and the page.

A `Listener` accepts connections. Each is a `ClientConnection`, which parses requests one after the other. Each
request is given to `Gateway.handle`. A client that leaves cancels its handler: `listener/listener.py`, then
`Outcomes.disconnected`.

The gateway makes a `RequestContext`: the caller, the body, the resources that the request holds until it is
closed, and what is logged of it. `Routes` find the handler by path and method. `BodyReader` reads the body
within its bounds. The handlers are in `handlers`: `Generation` attaches the request to a Flight, `PassThrough`
relays other paths of vLLM, `StatusHandlers` answer health, readiness, models and metrics.

A handler answers through the `Responder`: JSON of the gateway's own, an error, or a Flight as a stream or as
one body. `respond` turns these into bytes. A slow reader is written to no faster than it reads
(`respond.write_until_done`), and is disconnected after `client_stall_timeout`. `Outcomes` end a request: an
exception becomes the client's error, resources are released, one line is logged.

`ApiDocument` describes what the gateway answers (`/openapi.json`, `/docs`).

`LargeRequests` parse bodies that would block the event loop in child processes (`offload`). `Drain` ends the
process in order. `Page` is the page at `/` with its state and its playground.
"""

from proxy.server.bind import host_of, hosts_of, listen, listen_for_operators
from proxy.server.gateway import Gateway
from proxy.server.gauges import state_gauges
from proxy.server.handlers.flush import Flush
from proxy.server.listener.descriptors import descriptor_budget, in_use, limit, raise_limit
from proxy.server.listener.listener import Listener, source_of
from proxy.server.listener.timeouts import Times
from proxy.server.listener.tls import ServerTls, server_context
from proxy.server.listener.unix_socket import check_socket_path, unix_socket
from proxy.server.offload.large import LargeRequests
from proxy.server.openapi.handlers import ApiDocument
from proxy.server.page.handlers import Page
from proxy.server.page.state import Sources
from proxy.server.tracing import Tracing

__all__ = [
    "ApiDocument",
    "Flush",
    "Gateway",
    "LargeRequests",
    "Listener",
    "Page",
    "ServerTls",
    "Sources",
    "Times",
    "Tracing",
    "check_socket_path",
    "descriptor_budget",
    "host_of",
    "hosts_of",
    "in_use",
    "limit",
    "listen",
    "listen_for_operators",
    "raise_limit",
    "server_context",
    "source_of",
    "state_gauges",
    "unix_socket",
]

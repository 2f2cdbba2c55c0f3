"""Several processes behind one address: one supervisor, N workers.

The **supervisor** (`supervisor.py`) binds the listening sockets (`sockets.py`), starts the embedded engine and
Redis once, and keeps N **worker** processes (`process.py`): it restarts one that dies or no longer answers,
replaces them one by one on SIGUSR2, and drains them together. It serves no request.

A worker is a whole gateway that accepts from an inherited socket. Its **member** (`member.py`) talks with the
supervisor over a **channel** (`channel.py`: messages of msgspec).

**Permits** (`permits.py`) divide each engine's concurrency limit: every worker has an allotment, and all
allotments together never exceed the limit. While an engine is full, they go by class and tenant over the queues of
all workers (`order.py`).

**Shared admission** (`admission.py`) holds the limits of engines over several gateways, through Redis: each
gateway has a **lease** (`leases.py`) on places at each engine, which bounds its permits.

What a worker finds out of an engine (down, a breaker that opens, a probe) goes through the supervisor to all
others.

The worker that is asked for /metrics collects the metrics of all workers through the supervisor, which also keeps
the counters of workers that have ended.

The **log relay** (`log_relay.py`) writes whole lines of all workers to the supervisor's standard output.
"""

from proxy.workers.admission import Engines, OwnEngines, SharedAdmission
from proxy.workers.channel import Ready
from proxy.workers.log_relay import LogRelay
from proxy.workers.member import Member
from proxy.workers.process import CHANNEL
from proxy.workers.sockets import Sockets, bind
from proxy.workers.supervisor import CannotStart, Parts, Supervisor

__all__ = [
    "CHANNEL",
    "CannotStart",
    "Engines",
    "LogRelay",
    "Member",
    "OwnEngines",
    "Parts",
    "Ready",
    "SharedAdmission",
    "Sockets",
    "Supervisor",
    "bind",
]

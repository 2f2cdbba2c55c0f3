"""Binds the public listener and the operators' listener. Computes the hosts under which each may be addressed."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from aiohttp import web

from proxy.access import Hosts
from proxy.config import Settings
from proxy.errors import ListenError
from proxy.server.drain import CLOSE_SECONDS, Drain
from proxy.server.gateway import Gateway
from proxy.server.listener.descriptors import DescriptorBudget
from proxy.server.listener.listener import Listener
from proxy.server.listener.site import Site
from proxy.server.listener.timeouts import Times
from proxy.server.listener.tls import ServerTls
from proxy.server.listener.unix_socket import unix_socket
from proxy.telemetry import Log

MAX_OPERATORS: Final = 64  # connections to their listener


def host_of(listens: str) -> str:
    """The host of URLs of a listener at this address, as a browser on this machine opens them."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listens, listens)  # noqa: S104 - of all addresses one
    return f"[{host}]" if ":" in host else host


async def hosts_of(listens: str, allowed: Sequence[str]) -> Hosts:
    """The hosts under which a listener at this address may be addressed."""
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(listens, None, type=socket.SOCK_STREAM)
    except OSError:
        addresses = []  # binding will report it
    return Hosts(listens, allowed, [str(address[0]) for *_, address in addresses])


@dataclass(frozen=True, slots=True)
class Listening:
    """The public listener."""

    host: str  # or the socket's path
    port: int
    leave: Callable[[], Awaitable[None]]
    """See `Drain.leave`."""


async def listen(
    listener: Listener,
    gateway: Gateway,
    close: Callable[[], Awaitable[None]],
    settings: Settings,
    tls: ServerTls | None,
    log: Log,
    stack: AsyncExitStack,
    budget: DescriptorBudget,
    inherited: Sequence[socket.socket] = (),
    abandoned: Callable[[], int] = lambda: 0,
) -> Listening:
    """Bind, and register the Drain for the end. `inherited`: sockets that are bound already, to accept from in
    place of the settings' address; `abandoned`: as of the Drain."""
    sockets = list(inherited)
    if settings.listen_unix and not inherited:
        sockets.append(stack.enter_context(unix_socket(settings.listen_unix, int(settings.listen_unix_mode, 8))))
    runner = web.ServerRunner(listener, shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    drain = Drain(
        listener,
        runner,
        gateway,
        close,
        delay=settings.drain_delay,
        timeout=settings.drain_timeout,
        log=log,
        abandoned=abandoned,
    )
    stack.push_async_exit(drain)
    await _accept(runner, settings.host, settings.port, sockets, tls, settings.head_timeout, budget.backlog)
    if settings.listen_unix:
        return Listening(settings.listen_unix, 0, drain.leave)
    return Listening(settings.host, runner.addresses[0][1], drain.leave)


async def _accept(
    runner: web.ServerRunner,
    host: str,
    port: int,
    sockets: Sequence[socket.socket],
    tls: ServerTls | None,
    handshake: float,
    backlog: int,
) -> None:
    context = tls.context if tls is not None else None
    where: list[dict[str, object]] = [{"sock": sock} for sock in sockets] or [{"host": host, "port": port}]
    try:
        for each in where:
            await Site(runner, each, backlog=backlog, tls=context, handshake=handshake).start()
    except OSError as e:
        # The event loop's own text names the address, which the message does already.
        raise ListenError(os.strerror(e.errno) if e.errno and e.errno > 0 else e.strerror or str(e)) from e


async def listen_for_operators(
    gateway: Gateway,
    settings: Settings,
    tls: ServerTls | None,
    log: Log,
    stack: AsyncExitStack,
    inherited: Sequence[socket.socket] = (),
) -> str:
    """Bind the operators' port, where one is set, and return its URL. It closes last, after the drain."""
    if not settings.admin_port:
        return ""
    listener = Listener(
        partial(gateway.handle, admin=True),
        max_connections=MAX_OPERATORS,
        max_header=settings.max_header_bytes,
        max_headers=settings.max_headers,
        max_head=settings.max_head_bytes,
        times=Times(
            head=settings.head_timeout,
            stall=settings.client_stall_timeout or math.inf,
            idle=settings.idle_timeout,
        ),
        on_unreadable=lambda peer, why: log.often("info", "unreadable request", peer, client=peer, detail=why),
    )
    runner = web.ServerRunner(listener, shutdown_timeout=CLOSE_SECONDS)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await _accept(
            runner, settings.admin_host, settings.admin_port, inherited, tls, settings.head_timeout, MAX_OPERATORS
        )
    except ListenError as e:
        raise ListenError(f"{e} (admin_port = {settings.admin_port})", "admin_port") from e
    return f"{'http' if tls is None else 'https'}://{host_of(settings.admin_host)}:{settings.admin_port}"

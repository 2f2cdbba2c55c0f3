"""Owns the end of a request whose time is over: a 504, or an honest end of what has begun.
Must not know queues, engines or flights' phases: the generation goes on for its other readers, if there are any.
Called by the gateway, for a request that came with `x-request-timeout`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proxy import respond
from proxy.call import Call
from proxy.errors import Code, GatewayError
from proxy.plan import Mode
from proxy.wire.sse import LAST_CHUNK, chunk, encode


async def in_time(
    call: Call, answer: Callable[[Call], Awaitable[respond.Sent]], seconds: float, missed: Callable[[str], None]
) -> respond.Sent:
    """What `answer` sends, within so many seconds from the request's coming. A stream that has begun ends with an
    error frame; what cannot be ended honestly is cut. `missed` is told where it was.

    Raises GatewayError 504 where nothing has gone out.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            return await answer(call)
    except TimeoutError:
        if not limit.expired():
            raise  # another time limit's
    error = GatewayError(Code.DEADLINE_EXCEEDED, f"The {seconds:g} s of x-request-timeout are over.")
    reader = call.reader
    pipe = reader.pipe if reader is not None else None
    missed(reader.flight.phase.value if reader is not None else "arriving")
    if not call.status and not (isinstance(pipe, respond.SocketPipe) and not pipe.head):
        raise error
    call.error = error.code.code
    if reader is None or not isinstance(pipe, respond.SocketPipe) or reader.flight.mode is not Mode.STREAM:
        raise ConnectionResetError("its time was over in the middle of a body")
    if not reader.done:
        pipe.write(chunk(encode(error.json())) + LAST_CHUNK)
        reader.done = True
    call.status, call.bytes_out = 200, pipe.sent
    return respond.Sent(200, False, pipe.sent)

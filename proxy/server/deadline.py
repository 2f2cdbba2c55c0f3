"""The early end of a request whose deadline has passed or whose key has ended: an error, or an honest end of a
stream. The generation goes on for other readers, if there are any."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proxy.errors import Code, GatewayError
from proxy.flights import Mode
from proxy.server import respond
from proxy.server.context import RequestContext
from proxy.wire import LAST_CHUNK, chunk


async def run_with_deadline(
    context: RequestContext,
    answer: Callable[[RequestContext], Awaitable[respond.Sent]],
    seconds: float,
    missed: Callable[[str], None],
) -> respond.Sent:
    """What `answer` sends, within so many seconds. A stream that has begun ends with an
    error frame; other answers are cut. `missed` is called with the phase that it had reached.

    Raises GatewayError 504 where nothing has gone out.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            return await answer(context)
    except TimeoutError:
        if not limit.expired():
            raise  # another time limit's
    error = GatewayError(Code.DEADLINE_EXCEEDED, f"The deadline of x-request-timeout ({seconds:g} s) has passed.")
    missed(context.reader.flight.phase.value if context.reader is not None else "arriving")
    return end_early(context, error)


def end_early(context: RequestContext, error: GatewayError) -> respond.Sent:
    """End a request that is being answered, with this error. Raises it where nothing has gone out, and
    ConnectionResetError where only the end of the connection says that the answer is not whole."""
    reader = context.reader
    ended = reader is not None and reader.done  # with the flight's own end
    pipe = reader.end_writing() if reader is not None else None
    socket = respond.socket_of(pipe)
    if not context.status and (socket is None or socket.head):
        raise error
    context.failed(error.code.code)
    if reader is None or pipe is None or socket is None or reader.flight.mode is not Mode.STREAM:
        raise ConnectionResetError("ended early, in the middle of a body")
    if not ended:
        if reader.offset:
            raise ConnectionResetError("ended early, in the middle of a chunk")
        pipe.write(chunk(reader.flight.error_frame(error)) + LAST_CHUNK)
    context.begin_response(200)
    context.wrote(socket.sent)
    return respond.Sent(200, False, socket.sent)

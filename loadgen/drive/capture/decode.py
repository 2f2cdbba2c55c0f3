"""Decodes an ended exchange: bytes to events, each with its time or its interval, and the failure if there is
one. It runs after the measurement. The only user of `proxy.wire` for frames."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from loadgen.drive.capture.clock import Clock
from loadgen.drive.capture.dialects import DIALECTS, Dialect, Message, Part, error_in
from loadgen.drive.capture.exchange import Exchange, Read
from loadgen.drive.capture.messages import MessageError, Usage, cut
from loadgen.record import GENERATED, MAX_ANSWER, Event, Kind, Record, writable
from loadgen.spec import Endpoint
from proxy.wire import Framer, data_of, endings, field_of, is_done, lack_of

MAX_EVENT: Final = 4 * 1024 * 1024
"""Bytes of the largest event; a response with a larger one is `garbage`."""

MAX_DETAIL: Final = 500
Hide = Callable[[str], str]
Times = tuple[int, int, int]  # at, low, user


class Timeline:
    """When each byte of the body arrived."""

    def __init__(self, reads: Sequence[Read], clock: Clock) -> None:
        self._ends = [read.end for read in reads]
        self._times: list[Times] = []
        before = 0
        for read in reads:
            at, low, user = times_of(read, before, clock)
            self._times.append((at, low, user))
            before = at

    def of(self, end: int) -> Times:
        """at, low and user of the event whose last byte is number `end` (counted from 1).

        The stamp of a read belongs to its last byte. Events that end earlier in it arrived after the previous
        read, and after the last poll that found nothing.
        """
        i = bisect.bisect_left(self._ends, end)
        at, low, user = self._times[i]
        return (at, at, user) if self._ends[i] == end else (at, low, user)


def times_of(read: Read, before: int, clock: Clock) -> Times:
    """The read's stamp, the earliest time at which any of its bytes can have arrived, and when the program had
    it."""
    user = clock.since_start(read.user_ns)
    at = clock.since_start(clock.from_kernel(read.kernel_ns)) if read.kernel_ns else user
    at = min(at, user)  # the clocks agree to within a microsecond; no byte is read before it arrives
    not_before = clock.since_start(read.not_before_ns) if read.not_before_ns else before
    return at, min(max(before, not_before), at), user


def decode_exchange(
    exchange: Exchange,
    clock: Clock,
    hide: Hide = str,
    *,
    endpoint: Endpoint = "chat",
    keep_answer: bool = False,
) -> Record:
    """The exchange's record, complete. `hide` masks secrets in text that came from the server; `keep_answer` keeps
    the text of a complete answer."""
    record = exchange.record
    record.status = exchange.status
    record.shared = None if exchange.shared is None else writable(exchange.shared)
    record.connect_ns = exchange.connect_ns
    record.bytes_in = exchange.size
    if exchange.wrote_ns:
        record.write_ns = clock.since_start(exchange.wrote_ns)
        last_write = clock.since_start(max(exchange.wrote_ns, exchange.last_write_ns))
        by_kernel = clock.since_start(clock.from_kernel(exchange.tx_ns)) if exchange.tx_ns else last_write
        record.sent_ns = max(by_kernel, last_write)
    reads = list(exchange.reads())
    if reads:
        record.head_ns = times_of(reads[0], 0, clock)[0]
        record.end_ns = times_of(reads[-1], 0, clock)[0]
    if exchange.ended_ns and not exchange.complete:
        record.closed_ns = clock.since_start(exchange.ended_ns)
    body = exchange.body
    if exchange.status is not None and not 200 <= exchange.status < 300:
        _set(record, "status", f"{exchange.status}: {_words(body, hide)}")
    if exchange.failure is not None:
        _set(record, exchange.failure, exchange.detail)
    if record.failure == "status":
        pass
    elif body:
        parts = _read_body(record, exchange, body, Timeline(reads, clock), DIALECTS[endpoint], hide)
        if record.completion_tokens == 0 and any(part.text or part.other for part in parts):
            record.completion_tokens = None  # there is content: the usage does not count it
        if keep_answer and record.failure is None:
            record.answer = hide(answer_text(parts, whole=True))[:MAX_ANSWER]
    elif exchange.complete:
        _set(record, "garbage", f"status {exchange.status} and an empty body")
    if not exchange.complete and record.status is not None:
        _set(record, "truncated", "the connection ended before the response did")
    record.detail = writable(hide(record.detail)[:MAX_DETAIL])
    return record


def answer_of(exchange: Exchange, endpoint: Endpoint) -> str | None:
    """The text of a complete answer, without reasoning and tool calls; None for any other response."""
    if exchange.failure is not None or not exchange.complete or not 200 <= (exchange.status or 0) < 300:
        return None
    dialect, body = DIALECTS[endpoint], exchange.body
    try:
        if not exchange.record.stream:
            reading = dialect.whole(body)
            good = reading.parts and reading.error is None and _ended_well(reading.parts)
            return answer_text(reading.parts) if good else None
        parts: list[Part] = []
        done = False
        for frame, _ in _frames(body):
            data = data_of(frame)
            if is_done(frame):
                done = True
            elif data is not None and data.strip():
                reading = dialect.event(data)
                if reading.error is not None:
                    return None
                parts += reading.parts
                done = done or reading.last
        return answer_text(parts) if done and _ended_well(parts) else None
    except MessageError:
        return None


def _ended_well(parts: Iterable[Part]) -> bool:
    """Whether each choice ended by a finish_reason of OpenAI's, where the API has one."""
    ended: dict[int, str] = {}
    for part in parts:
        if part.finish is not None:
            ended[part.choice] = part.finish or ended.get(part.choice, "")
    return not ended or lack_of(ended, 0) is None


def answer_text(parts: Sequence[Part], *, whole: bool = False) -> str:
    """The first choice's content; with `whole` every choice's, and its reasoning and tool calls before it."""
    if not whole:
        return writable("".join(part.text for part in parts if part.choice == 0))
    choices = sorted({part.choice for part in parts})
    return "\n".join(
        writable("".join(part.other for part in parts if part.choice == choice))
        + writable("".join(part.text for part in parts if part.choice == choice))
        for choice in choices
    )


def _read_body(
    record: Record, exchange: Exchange, body: bytes, timeline: Timeline, dialect: Dialect, hide: Hide
) -> Sequence[Part]:
    if not record.stream:
        return _read_whole(record, exchange, body, timeline, dialect, hide)
    if "text/event-stream" not in exchange.content_type.lower() and body.lstrip()[:1] == b"{":
        error = error_in(body)
        if error is not None:
            _set(record, "error_frame", error)
        else:
            _set(record, "garbage", "requested a stream, got one JSON body")
        return ()
    return _read_stream(record, exchange, body, timeline, dialect, hide)


def _read_whole(
    record: Record, exchange: Exchange, body: bytes, timeline: Timeline, dialect: Dialect, hide: Hide
) -> Sequence[Part]:
    if not exchange.complete:
        return ()
    try:
        reading = dialect.whole(body)
    except MessageError as error:
        _set(record, "garbage", error.words(hide))
        return ()
    at, low, user = timeline.of(len(body))
    if reading.error is not None:
        _set(record, "error_frame", reading.error)
        record.events = [Event(at, low, user, Kind.ERROR)]
    elif not reading.parts:
        _set(record, "garbage", f"no answer in the body: {_words(body, hide)}")
    else:
        _count(record, reading.usage)
        _keep_times(record, reading)
        record.events = [Event(at, low, user, Kind.WHOLE)]
        _whole(record, {part.choice: part.finish for part in reading.parts if part.finish is not None})
    return reading.parts


def _read_stream(
    record: Record, exchange: Exchange, body: bytes, timeline: Timeline, dialect: Dialect, hide: Hide
) -> Sequence[Part]:
    done = False
    parts: list[Part] = []
    events = record.events = []
    counted: dict[int, int | None] = {}  # choice -> tokens so far by continuous usage; None: not continuous
    ended: dict[int, str] = {}  # choice -> its finish_reason; "": none yet
    try:
        for frame, end in _frames(body):
            times = timeline.of(end)
            if is_done(frame):
                done = True
                events.append(Event(*times, Kind.DONE))
                continue
            data = data_of(frame)
            if data is None or not data.strip():
                events.append(Event(*times, Kind.OTHER))
                continue
            reading = dialect.event(data)
            error = reading.error
            if error is None and any(v.strip() == b"error" for v in field_of(frame, b"event")):
                error = _words(data, hide)
            if error is not None:
                events.append(Event(*times, Kind.ERROR))
                _set(record, "error_frame", error)
                continue
            events += _events(reading, times, counted)
            parts += reading.parts
            _count(record, reading.usage)
            _keep_times(record, reading)
            done = done or reading.last
            for part in reading.parts:
                if part.finish is not None:
                    ended.setdefault(part.choice, "")
                if part.finish:
                    endings((frame,), ended)
    except MessageError as error:
        _set(record, "garbage", error.words(hide))
    if done and not any(event.kind in GENERATED or event.kind is Kind.FINISH for event in events):
        _set(record, "garbage", "the stream ended without any choice")
    elif done:
        _whole(record, ended)
    if not done and exchange.complete:
        if events:
            _set(record, "truncated", f"the stream ended without {dialect.end}")
        else:
            _set(record, "garbage", f"not an event stream: {_words(body, hide)}")
    return parts


def _whole(record: Record, ended: dict[int, str]) -> None:
    """A failure where a choice did not end by a finish_reason of OpenAI's: vLLM ends an aborted request by `abort`
    and `[DONE]`."""
    lack = lack_of(ended, 0) if ended else None
    if lack is not None:
        _set(record, "truncated" if lack.few else "aborted", lack.words)


def _frames(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Each event and the offset of its end. Raises MessageError for one that is too large."""
    end = 0
    for frame in Framer(len(body)).feed(body):
        end += len(frame)
        if len(frame) > MAX_EVENT:
            raise MessageError(f"an event larger than {MAX_EVENT} bytes")
        yield frame, end


def _events(reading: Message, times: Times, counted: dict[int, int | None]) -> Iterator[Event]:
    if not reading.parts:
        yield Event(*times, Kind.USAGE if reading.usage is not None else Kind.OTHER)
        return
    for part in reading.parts:
        tokens = None
        if part.kind in GENERATED:
            so_far = counted.get(part.choice, 0)
            now = reading.usage.completion_tokens if reading.usage is not None else None
            if so_far is not None and now is not None:
                tokens = max(now - so_far, 0)
            counted[part.choice] = now if so_far is not None else None
        yield Event(*times, part.kind, tokens, part.choice)


def _count(record: Record, usage: Usage | None) -> None:
    """The last usage counts: continuous usage grows, and the final chunk holds the total. 0 replaces no count."""
    if usage is None:
        return
    record.prompt_tokens = _later(record.prompt_tokens, usage.prompt_tokens)
    record.completion_tokens = _later(record.completion_tokens, usage.completion_tokens)
    if usage.prompt_tokens_details is not None:
        record.cached_tokens = _later(record.cached_tokens, usage.prompt_tokens_details.cached_tokens)


def _later(count: int | None, new: int | None) -> int | None:
    return new if new or count is None else count


def _keep_times(record: Record, reading: Message) -> None:
    times = reading.times
    if times is not None:
        record.engine_queue_ms, record.engine_prefill_ms = times.queue_time_ms, times.time_to_first_token_ms


def _set(record: Record, failure: str, detail: str) -> None:
    if record.failure is None:
        record.failure = failure  # type: ignore[assignment]
        record.detail = detail


def _words(body: bytes, hide: Hide) -> str:
    """A body as text for a person: its error message, or its first 200 characters."""
    return error_in(body) or cut(body, 200, hide).strip() or "empty body"

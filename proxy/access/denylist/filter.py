"""Filtering of answers by the deny list: an Ingest that holds frames back until no rule can match their text
any more, and ends the answer with an error where one does."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import msgspec

from proxy.access.denylist.rules import DenyList
from proxy.access.denylist.scanner import Scanner
from proxy.access.rules import AccessRules
from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.flights import Callbacks, Flight, Ingest, MakeIngest, Mode, Timeouts
from proxy.telemetry import Log, Metrics, internal, raised
from proxy.wire import data_of, is_done, strings

Channel = tuple[object, ...]
Check = Callable[[Flight, bytes], Awaitable[int]]
AT_ONCE: Final = 16_384
"""Bytes of an answer that are searched in one event-loop iteration."""
PIECE: Final = 4096  # characters of a long text searched at a time: normalisation may make eighteen of each
NOTHING: Final = DenyList((), (), "")  # for a body that has been searched
_BROKEN: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_KINDS: Final = frozenset({"role", "type", "id", "finish_reason", "stop_reason"})


def denied() -> GatewayError:
    """The error of an answer, without the denied text."""
    return GatewayError(Code.CONTENT_DENIED, "The answer contains denied content.")


class FilteringIngest(Ingest):
    """An Ingest that passes a frame on only once its text cannot be part of a denied text.

    It filters before the Flight, so an answer is searched once for all readers, and denied text reaches neither
    the log nor the store. Readers get an error frame, and the generation is cancelled.
    """

    __slots__ = (
        "_backlog", "_check", "_checking", "_deny", "_ending", "_on_hit", "_scanners", "_turn", "_waiting",
        "_waiting_bytes", "_window",
    )  # fmt: skip

    def __init__(
        self,
        flight: Flight,
        timeouts: Timeouts,
        callbacks: Callbacks,
        *,
        deny: DenyList,
        window: int,
        on_hit: Callable[[Flight, int], None],
        check: Check | None = None,
    ) -> None:
        """`check` searches a long body in a child process."""
        super().__init__(flight, timeouts, callbacks)
        self._deny = deny
        self._window = window
        self._on_hit = on_hit
        self._scanners: dict[Channel, Scanner] = {}
        self._waiting: deque[tuple[bytes, list[tuple[Scanner, int]]]] = deque()
        self._waiting_bytes = 0
        self._backlog: deque[bytes] = deque()  # frames not searched yet: too many for one iteration
        self._turn: Iterator[None] | None = None  # searches the backlog, a part in each event-loop iteration
        self._ending: Callable[[], None] | None = None  # the end of the answer, called after the backlog
        self._check = check
        self._checking: asyncio.Task[None] | None = None

    def body(self, data: bytes, wired: bytes = b"") -> None:
        if self.done or self.flight.mode is not Mode.STREAM:
            super().body(data, wired)
            return
        if self.vet is not None:
            stale = self.vet(data)
            if stale:
                return
            if stale is False:
                self.vet = None
        self._frames(data, self.flight.clock())
        if self.flight.size + self._waiting_bytes > self._limits.flight:
            self._fail(GatewayError(Code.UPSTREAM_TOO_LARGE, f"The answer exceeds {self._limits.flight} bytes."))

    def end(self) -> None:
        if self._turn is not None:
            self._ending = self._ending or super().end
        elif not self._check_later():
            super().end()

    def lost(self, error: GatewayError) -> None:
        if self._turn is not None:
            self._ending = self._ending or partial(super().lost, error)
        else:
            super().lost(error)

    def _close(self, error: GatewayError | None) -> None:
        self._backlog.clear()
        if self._checking is not None:
            self._checking.cancel()
        super()._close(error)

    # -- long answers -----------------------------------------------------------------------------

    def _later(self, frames: list[bytes]) -> None:
        """Queue frames that are too long for one event-loop iteration."""
        self._backlog.extend(frames)
        self._waiting_bytes += sum(map(len, frames))
        if self._turn is None:
            self._turn = self._looks()
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Search the part of one iteration."""
        turn = self._turn
        if turn is None or self.done:
            return
        try:
            for _ in turn:
                asyncio.get_running_loop().call_soon(self._step)
                return
        except Exception as e:  # noqa: BLE001 - an answer's data must not leave its flight without an end
            raised("the look at an answer", e)
            self._fail(internal())
            return
        self._turn = None
        ending, self._ending = self._ending, None
        if ending is not None and not self.done:
            ending()

    def _looks(self) -> Iterator[None]:
        while self._backlog and not self.done:
            batch, size = [], 0
            while self._backlog and size + len(self._backlog[0]) <= AT_ONCE:
                batch.append(self._backlog.popleft())
                size += len(batch[-1])
            if batch:
                self._waiting_bytes -= size
                self._take_frames(batch, self._last)
            else:
                yield from self._look_long(self._backlog.popleft())
            yield

    def _look_long(self, frame: bytes) -> Iterator[None]:
        """Search one frame that is too long for an iteration."""
        ends: list[tuple[Scanner, int]] = []
        for channel, text in texts_of(frame):
            scanner = self._scanner(channel)
            for at in range(0, len(text), PIECE):
                scanner.feed(text[at : at + PIECE])
                yield
            ends.append((scanner, scanner.read))
        if self.done:
            return
        if not self._look_at(frame, self._last):
            self._waiting_bytes -= len(frame)
            return
        self._waiting.append((frame, ends))
        if not self._hit():
            self._release()
            self.flight.flush()

    def _check_later(self) -> bool:
        """Whether a body is searched in a child process, and ends after that."""
        head = self._head
        if (
            self._check is None
            or self.done
            or self.flight.mode is not Mode.WHOLE
            or self.flight.size <= AT_ONCE
            or head is None
            or head.status != 200
            or self.flight.spec.api_request is None
            or self.flight.spec.api_request.endpoint == "embeddings"
        ):
            return False
        self._checking = asyncio.create_task(self._checked(self._check))
        return True

    async def _checked(self, check: Check) -> None:
        try:
            line = await check(self.flight, b"".join(self.flight.log))
        except GatewayError as e:
            self._fail(e)
            return
        except Exception as e:  # noqa: BLE001 - an answer's data must not leave its flight without an end
            raised("the look at an answer", e)
            self._fail(internal())
            return
        self._checking = None
        if self.done:
            return
        if line:
            self._refuse(line)
            return
        self._check = None  # it has been searched
        self._deny = NOTHING
        super().end()

    # -- the rest ---------------------------------------------------------------------------------

    def _pass_on(self, frames: list[bytes], now: float) -> None:
        if self._turn is not None or sum(map(len, frames)) > AT_ONCE:
            self._later(frames)
        else:
            self._take_frames(frames, now)

    def _take_frames(self, frames: list[bytes], now: float) -> None:
        for frame in frames:
            if is_done(frame):
                for scanner in self._scanners.values():
                    scanner.end()
                if self._hit():
                    return
                self._release()
                self.surplus = frame is not frames[-1] or bool(self._framer.pending)
                self._finish(frame)
                return
            if self._look_at(frame, now):
                self._hold(frame)
            if self.done or self._hit():
                return
        self._release()
        self.flight.flush()

    def _hold(self, frame: bytes) -> None:
        ends: list[tuple[Scanner, int]] = []
        for channel, text in texts_of(frame):
            scanner = self._scanner(channel)
            scanner.feed(text)
            ends.append((scanner, scanner.read))
        self._waiting.append((frame, ends))
        self._waiting_bytes += len(frame)

    def _scanner(self, channel: Channel) -> Scanner:
        scanner = self._scanners.get(channel)
        if scanner is None:
            scanner = self._scanners[channel] = Scanner(self._deny, self._window)
        return scanner

    def _release(self) -> None:
        """Pass on, in their order, the frames that are safe: a frame of one choice waits behind another's."""
        waiting = self._waiting
        while waiting and all(scanner.safe >= end for scanner, end in waiting[0][1]):
            frame, _ = waiting.popleft()
            self._waiting_bytes -= len(frame)
            self.flight.add(frame)

    def _hit(self) -> bool:
        for scanner in self._scanners.values():
            if scanner.hit is not None:
                self._refuse(scanner.hit)
                return True
        return False

    def _refuse(self, line: int) -> None:
        self._waiting.clear()
        self._on_hit(self.flight, line)
        self._fail(denied())

    def _read_whole(self) -> bool:
        if not super()._read_whole():
            return False
        if self.flight.spec.api_request is None or self.flight.spec.api_request.endpoint == "embeddings":
            return True
        line = denied_in_body(self._deny, b"".join(self.flight.log)) if self._deny is not NOTHING else None
        if line is not None:
            self.flight.reports(self._usage)  # the tokens were generated all the same
            self._refuse(line)
            return False
        return True


def denied_in_body(deny: DenyList, body: bytes) -> int | None:
    """The line of a rule that the generated texts of a body break."""
    texts: dict[Channel, list[str]] = {}
    for channel, text in texts_of(b"data: " + body.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n\n"):
        texts.setdefault(channel, []).append(text)
    for parts in texts.values():
        line = deny.find("".join(parts))
        if line is not None:
            return line
    return None


def texts_of(frame: bytes) -> Iterator[tuple[Channel, str]]:
    """The generated texts of a frame or of a whole body, each with the choice and the member that it continues.
    An event that is not JSON is searched as one text."""
    data = data_of(frame)
    if data is None:
        return
    try:
        value: Any = msgspec.json.decode(data)
    except _BROKEN:
        yield ("raw",), data.decode("utf-8", "replace")
        return
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list):
        for text in strings(value.get("error") if isinstance(value, dict) else value):
            yield ("raw",), text
        return
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        index = choice.get("index", 0)
        for name in ("text", "delta", "message"):
            yield from _members((str(index),), name, choice.get(name))
        # Its tokens once more, and those of a text that the client did not want, such as the reasoning.
        tokens = "".join(_tokens(choice.get("logprobs")))
        if tokens:
            yield (str(index), "logprobs"), tokens


def _tokens(logprobs: Any) -> Iterator[str]:
    """The tokens of a chat's log probabilities, or of a completion's."""
    if isinstance(logprobs, dict):
        tokens, content = logprobs.get("tokens"), logprobs.get("content")
        listed = (
            [entry.get("token") for entry in content if isinstance(entry, dict)]
            if isinstance(content, list)
            else []
        )
        for token in (*(tokens if isinstance(tokens, list) else ()), *listed):
            if isinstance(token, str):
                yield token


def _members(at: Channel, name: str, value: Any) -> Iterator[tuple[Channel, str]]:
    rest: list[tuple[Channel, Any]] = [((*at, name), value)]
    while rest:
        channel, item = rest.pop()
        if isinstance(item, str):
            yield channel, item
        elif isinstance(item, list):
            for place, member in reversed(list(enumerate(item))):
                own = member.get("index", place) if isinstance(member, dict) else place
                rest.append(((*channel, str(own)), member))
        elif isinstance(item, dict):
            rest.extend(((*channel, key), member) for key, member in reversed(item.items()) if key not in _KINDS)


def ingest_for(
    settings: Settings, rules: AccessRules, metrics: Metrics, log: Log, check: Check | None = None
) -> MakeIngest:
    """Makes an Ingest, or a FilteringIngest where the settings filter answers, with the deny list in force when
    the exchange begins."""
    if rules.deny is None or not settings.deny_answers:
        return Ingest

    def hit(flight: Flight, line: int) -> None:
        metrics.content_denied("answer")
        whose = {"request_id" if flight.private else "upstream_id": flight.spec.request_id}
        log.event("info", "content denied", where="answer", rule=line, **whose)

    def make(flight: Flight, timeouts: Timeouts, callbacks: Callbacks) -> Ingest:
        if rules.deny is None or flight.mode is Mode.RAW:
            return Ingest(flight, timeouts, callbacks)
        return FilteringIngest(
            flight,
            timeouts,
            callbacks,
            deny=rules.deny,
            window=settings.deny_window,
            on_hit=hit,
            check=check,
        )

    return make

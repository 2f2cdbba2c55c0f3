"""From an engine's answer into a Flight, where the answer is a stream of typed events (`wire/event_apis`)."""

from __future__ import annotations

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, Ingest, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import Mode
from proxy.wire import Usage
from proxy.wire.event_apis import EventApi, Seen


class EventIngest(Ingest):
    """Passes events on one by one, unchanged, and reads from them what is counted."""

    __slots__ = ("_api", "_count", "_generates", "_prompt")

    def __init__(self, flight: Flight, timeouts: Timeouts, callbacks: Callbacks) -> None:
        super().__init__(flight, timeouts, callbacks)
        assert flight.spec.event_api is not None
        self._api: EventApi = flight.spec.event_api
        self._count = 0  # events
        self._prompt = 0  # tokens
        self._generates = False  # more has come than the events that announce an answer

    def end(self) -> None:
        if self.done or self.flight.mode is not Mode.STREAM:
            super().end()
            return
        self.answered = True
        if self.error_frame:
            self._land(self._head)
        else:
            self._fail(
                GatewayError(Code.UPSTREAM_TRUNCATED, "The engine ended the stream before it was complete.")
            )

    @property
    def _begun(self) -> bool:
        return self._generates if self.flight.mode is Mode.STREAM else super()._begun

    def _frames(self, data: bytes, now: float) -> None:
        try:
            frames = self._framer.feed(data)
        except GatewayError as e:
            self.lost(e)
            return
        flight = self.flight
        for frame in frames:
            seen = self._api.read_event(frame)
            if seen.idle:
                if flight.phase is Phase.STREAMING:
                    flight.remark(frame)
                continue
            self._count += 1
            self._last = now
            self._take(seen, now)
            flight.add(frame)
            if seen.end:
                self.surplus = frame is not frames[-1] or bool(self._framer.pending)
                self.clean = True
                self._land(self._head)
                return
        if self._framer.speaks:
            self._last = now
        if frames:
            flight.numbers(self._count)
            flight.flush()

    def _take(self, seen: Seen, now: float) -> None:
        """Record the facts of an event."""
        flight = self.flight
        if not seen.opening:
            self._generates = True
        if seen.content:
            if flight.token(now) and self._callbacks.first is not None:
                self._callbacks.first()
            return
        self._prompt = max(self._prompt, seen.prompt)
        usage = seen.usage
        if usage is not None:
            prompt = max(self._prompt, usage.prompt_tokens)
            flight.reports(Usage(prompt, usage.completion_tokens, prompt + usage.completion_tokens))
        if seen.id is not None:
            flight.names(seen.id)
        if seen.error:
            self.error_frame = True
            flight.tells_error()

    def _read_whole(self) -> bool:
        log = self.flight.log
        seen = self._api.read_body(log[0] if len(log) == 1 else b"".join(log))
        self._usage = seen.usage
        if seen.id is not None:
            self.flight.names(seen.id)
        return True

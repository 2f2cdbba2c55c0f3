"""When a client leaves a stream on purpose: the generated tokens, counted as they arrive."""

from __future__ import annotations

import sys

from loadgen.drive.capture.dialects import DIALECTS
from loadgen.drive.capture.messages import MessageError
from loadgen.record import GENERATED
from loadgen.spec import Endpoint
from proxy.wire import Framer, data_of, is_done


class TokenCount:
    """Counts a stream's events with generated content, or its tokens where continuous usage says how many. Only
    streams that are to be cancelled are read while they arrive."""

    def __init__(self, endpoint: Endpoint, limit: int) -> None:
        self._read = DIALECTS[endpoint].event
        self._limit = limit
        self._framer = Framer(sys.maxsize)  # the body is bounded by --max-response-bytes
        self.tokens = 0

    def reached(self, data: bytes) -> bool:
        """Whether the limit is reached with these bytes."""
        try:
            for frame in self._framer.feed(data):
                content = data_of(frame)
                if content is None or not content.strip() or is_done(frame):
                    continue
                reading = self._read(content)
                events = sum(part.kind in GENERATED for part in reading.parts)
                usage = reading.usage.completion_tokens if reading.usage is not None and events else None
                self.tokens = max(self.tokens + events, usage or 0)
        except MessageError:
            return False  # the decoding after the run says what is wrong with it
        return self.tokens >= self._limit

"""What operators see: log, metrics, audit lines and traces.

A reader meets, in this order:

- `Log` writes one line per request, from a `RequestRecord`, and `event`s of the process. A thread writes; what
  waits is bounded in bytes and shared fairly among clients (`fair_lines`), and repeated lines are rate-limited
  (`repeats`).
- `Metrics` has one method for each fact. Numbers are kept as `Counts` and `Histograms` (`series`), whose label
  values are bounded by a `Label`; gauges are read at each scrape.
- A `Family` is one metric as plain data, by which several processes are `summed` and `rendered` as one.
- `Audit` writes who did what: reloads, refused keys, acts of operators.
- A `Recording` keeps each request as it was `Recorded`, for the load generator to replay.
- `Certificates` exports when certificates expire, and warns.
- `Otel` is OpenTelemetry's tracer; a `FlightTrace` is what one flight reports to it.
- A `Fault` reports an exception; `Containment` counts it. `contained` runs steps of which each must run,
  `raised` hands an exception to the loop's handler.
- `Faults` takes the place of Python's own hooks, so that nothing is written to stderr behind the log's back.

Nothing here knows requests, flights or engines: it gets records, names and numbers.
"""

from proxy.telemetry.audit import Audit, Refusal
from proxy.telemetry.certificates import Certificates, expiry_of
from proxy.telemetry.containment import Containment, Fault, contained, internal, raised, unawaited
from proxy.telemetry.families import Family, lasting, rendered, summed
from proxy.telemetry.faults import Faults
from proxy.telemetry.log import Log, RequestRecord
from proxy.telemetry.metrics import BAD_STATUS, BATCH_BUCKETS, PREFIX, QUEUE_BUCKETS, VERDICTS, Metrics
from proxy.telemetry.otel import FLUSH_SECONDS, Otel, packages
from proxy.telemetry.recording import Recorded, Recording
from proxy.telemetry.series import Counts, Histograms, Label, Sample
from proxy.telemetry.trace import FlightTrace

__all__ = [
    "BAD_STATUS",
    "BATCH_BUCKETS",
    "FLUSH_SECONDS",
    "PREFIX",
    "QUEUE_BUCKETS",
    "VERDICTS",
    "Audit",
    "Certificates",
    "Containment",
    "Counts",
    "Family",
    "Fault",
    "Faults",
    "FlightTrace",
    "Histograms",
    "Label",
    "Log",
    "Metrics",
    "Otel",
    "Recorded",
    "Recording",
    "Refusal",
    "RequestRecord",
    "Sample",
    "contained",
    "expiry_of",
    "internal",
    "lasting",
    "packages",
    "raised",
    "rendered",
    "summed",
    "unawaited",
]

"""TODO"""

from proxy.telemetry.audit import Audit, Refusal
from proxy.telemetry.certificates import Certificates, expiry_of
from proxy.telemetry.containment import Containment, Fault, contained, internal, raised, unawaited
from proxy.telemetry.faults import Faults
from proxy.telemetry.log import Log, RequestRecord
from proxy.telemetry.metrics import BAD_STATUS, BATCH_BUCKETS, PREFIX, QUEUE_BUCKETS, VERDICTS, Metrics
from proxy.telemetry.otel import FLUSH_SECONDS, Otel, packages
from proxy.telemetry.series import Counts, Histograms, Label, Sample
from proxy.telemetry.streams import run
from proxy.telemetry.terminal import say
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
    "Fault",
    "Faults",
    "FlightTrace",
    "Histograms",
    "Label",
    "Log",
    "Metrics",
    "Otel",
    "Refusal",
    "RequestRecord",
    "Sample",
    "contained",
    "expiry_of",
    "internal",
    "packages",
    "raised",
    "run",
    "say",
    "unawaited",
]

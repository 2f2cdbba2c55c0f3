"""Answers of other APIs than OpenAI's chat: those whose events are read (`wire/event_apis`), and those that pass
through."""

from proxy.flights.events.event_ingest import EventIngest
from proxy.flights.events.raw_ingest import RawIngest

__all__ = ["EventIngest", "RawIngest"]

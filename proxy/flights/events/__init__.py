"""Answers of other APIs than OpenAI's chat: see `wire/event_apis`."""

from proxy.flights.events.event_ingest import EventIngest

__all__ = ["EventIngest"]

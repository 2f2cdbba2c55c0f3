"""Micro benchmarks of one part each, in one process: `parsers` (reading an engine's response), `listener`
(a client's request), `redis_lookup`."""

"""Micro benchmarks of one part each, in one process: `parsers` (reading an engine's response), `redis_lookup`."""

"""Micro benchmarks of one part each, in one process: `parsers` (reading an engine's response), `listener`
(a client's request), `redis_lookup`. And what a whole request takes that noise cannot move: `instructions` of the
processor, and `rooms` (calls and bytecodes by room)."""

"""Work that would block the event loop, in child processes: large bodies are parsed and checked there, long
streams folded into one body. `LargeRequests` is what the gateway uses, `Offload` the pool of processes, `child`
their main module."""

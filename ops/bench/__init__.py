"""The gateway measured beside its peers: CPU per event and per request, added latency, every byte checked."""

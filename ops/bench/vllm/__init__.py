"""Benchmarks on a real vLLM: `real` (overhead, and engine work saved by sharing), `batching`, `admission` (an
overloaded engine), `prefixes` (prompts with common prefixes). `ways` starts engine and gateways, `tables` formats
results, and `fake_engine` replaces vLLM in a dry run."""

"""What the gateway costs: CPU time per event and per request, added latency, memory; next to other proxies
(`peers`), on a real vLLM (`vllm`), under hostile input (`hostile`) and piece by piece (`micro`). `generators`
compares load generators. Everything is run by hand; the tests only run it briefly."""

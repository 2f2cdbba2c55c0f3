"""What the gateway costs: CPU time per event and per request, added latency, memory; next to other proxies
(`peers`), in the form in which others publish it (`capacity`), on a GPU (`gpu`) or another real vLLM (`vllm`),
under hostile input (`hostile`) and piece by piece (`micro`). `generators` compares load generators, `page` writes
the results into the documents. Everything is run by hand; the tests only run it briefly."""

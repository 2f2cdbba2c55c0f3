"""vLLM's own tests, with its server fixture pointed at the gateway."""

"""vLLM on a GPU: direct, through the gateway and through vllm-router, side by side within a time budget. `model`
makes a model of a real shape without weights, `engine` finds vLLM and says why it does not start, `plan` decides
by the clock what is still measured, `measure` measures one row, `report` writes the results."""

"""`python -m loadgen vllm-bench-serve`: the command line of `vllm bench serve`, measured by this load generator.

`flags.py` has every flag of vLLM's and what becomes of it, `bench_serve.py` is the command, `result_file.py`
writes the JSON file that vLLM would write.
"""

"""The load generator beside others: the error of the TTFT that each reports, and the CPU time that each takes."""

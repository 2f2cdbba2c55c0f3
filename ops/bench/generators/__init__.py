"""Compares load generators: the error of the TTFT that each reports, and its CPU time."""

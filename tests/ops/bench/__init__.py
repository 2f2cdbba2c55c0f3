"""Tests of the benchmarks: their tables and judgements, and one short run of most of them."""

"""The load generator: sends requests, measures by the kernel's clock, states its own error, and reports."""

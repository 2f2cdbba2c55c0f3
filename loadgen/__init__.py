"""The load generator: sends, measures by the kernel's clock, says how wrong it is, and reports."""

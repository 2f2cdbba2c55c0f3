"""What the commands refuse with exit code 2. Each message names what was wrong and what would be right."""

from __future__ import annotations


class UsageError(Exception):
    """A request that the command line cannot carry out."""


class WorkloadError(ValueError):
    """A flag or a file from which no workload can be built; names the file and the line."""


class StoreError(Exception):
    """A file of a run that cannot be used; names the file and the line."""

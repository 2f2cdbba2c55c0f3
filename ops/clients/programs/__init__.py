"""One program for each client: its trials, run against each target. A program knows nothing of the gateway."""

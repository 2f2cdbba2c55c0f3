"""One program for each client: its trials, run by name against each target. A program knows nothing of the gateway."""

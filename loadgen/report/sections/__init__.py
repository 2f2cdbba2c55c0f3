"""Sections of a report for what only some runs have: a search's answer, loads side by side, the engine's own
figures."""

"""Judges `loadgen find` by servers whose limits are known: ten searches of each, with ten seeds."""

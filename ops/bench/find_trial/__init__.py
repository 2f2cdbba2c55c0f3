"""Judges `loadgen find` by servers whose limits are known to somebody: ten searches of each, with ten seeds."""

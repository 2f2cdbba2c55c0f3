"""The engine and the Redis that come along, as supervised child processes."""

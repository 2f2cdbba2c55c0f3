"""The engine and the Redis that come with the gateway, as supervised child processes. `EmbeddedEngine` and
`EmbeddedRedis` each start a `Child`; `launch` makes the kernel end it with its parent."""

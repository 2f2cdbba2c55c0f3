"""One request on the wire: sockets, event loop and protocol that take time stamps, and decoding of what came."""

"""One request on the wire: sockets, event loop and protocol with time stamps, and decoding of the bytes."""

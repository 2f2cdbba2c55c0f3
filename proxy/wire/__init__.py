"""What crosses the wire, without I/O: bytes to frames, bytes to structs, and back."""

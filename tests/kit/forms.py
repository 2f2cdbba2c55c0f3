"""Owns multipart forms for tests: well-formed ones from fields and files, as curl writes them.
Must not know the proxy.
Called by tests."""

from __future__ import annotations

from collections.abc import Mapping

FORM_TYPE = ("Content-Type", "multipart/form-data; boundary=x")


def part(name: str, value: bytes, *, filename: str | None = None, more: bytes = b"") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'Content-Disposition: form-data; name="{name}"{file}\r\n'.encode()
    return head + more + b"\r\n" + value


def joined(boundary: bytes, *parts: bytes) -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + each + b"\r\n" for each in parts) + b"--" + boundary + b"--\r\n"


def form_of(boundary: bytes, fields: Mapping[str, str], file: bytes | None = b"RIFF") -> bytes:
    """These fields, and a file unless it is None."""
    parts = [part(name, value.encode()) for name, value in fields.items()]
    if file is not None:
        parts.append(part("file", file, filename="a.wav", more=b"Content-Type: audio/wav\r\n"))
    return joined(boundary, *parts)

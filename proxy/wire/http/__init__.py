"""What HTTP/1.1 says around a body, read strictly: `target` (path, query, authority), `media_type`, multipart
`form`s, the ends of chunks, and the `security` headers of every answer."""

from proxy.wire.http.chunk_ends import ChunkEnds
from proxy.wire.http.media_type import Media, media_of, require_json, require_plain, unread
from proxy.wire.http.security import SECURITY_HEADERS, SECURITY_LINES
from proxy.wire.http.target import (
    ASTERISK,
    KEPT_LENGTH,
    Malformed,
    Target,
    known_host,
    known_target,
    read_authority,
    read_host,
    read_target,
)

__all__ = [
    "ASTERISK",
    "KEPT_LENGTH",
    "SECURITY_HEADERS",
    "SECURITY_LINES",
    "ChunkEnds",
    "Malformed",
    "Media",
    "Target",
    "known_host",
    "known_target",
    "media_of",
    "read_authority",
    "read_host",
    "read_target",
    "require_json",
    "require_plain",
    "unread",
]

"""Owns the table of answers, whole and broken, and what must come of each: for ours, and where aiohttp differs.
Must not know how they are sent.
Called by test_upstream_faults (both, on sockets) and test_answer (ours, under every split)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy.errors import Code

OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HI: Final = b"Content-Length: 2\r\n\r\nhi"
EVIL: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
PROTOCOL, TRUNCATED, UNREACHABLE = Code.UPSTREAM_PROTOCOL, Code.UPSTREAM_TRUNCATED, Code.UPSTREAM_UNREACHABLE


@dataclass(frozen=True)
class Whole:
    """An answer that came whole. `kept`: the connection may serve another exchange."""

    body: bytes = b"hi"
    status: int = 200
    kept: bool = True


Outcome = Whole | Code


@dataclass(frozen=True)
class Case:
    name: str
    answer: bytes
    ours: Outcome
    theirs: Outcome | None = None  # what aiohttp 3.14.5 makes of it, where that is something else
    why: str = ""  # they rightly differ
    end: str = ""  # how the engine closes after the answer: "", "fin" or "reset"
    seen: bytes = b""  # the body that the client is to have before a reset
    method: str = "GET"


KEPT: Final = Whole()
CLOSED: Final = Whole(kept=False)
STRICT: Final = "aiohttp sets llhttp's leniencies on responses: two readers could see two answers"
CAUTIOUS: Final = "it closes; but an answer to HEAD has no body whatever its head says, so its end is beyond doubt"
DROPS: Final = "it drops the rest and keeps the connection, though more of it may be on its way"
FAILS: Final = "it fails the answer for what came after it, if that came in the same read; the answer was whole"
TRUSTS: Final = "it keeps the connection, though the body that the head speaks of may come"
VERSION: Final = "it reads the answer of another protocol as if it were HTTP/1.1"
LABEL: Final = "no encoding was asked for, and transfer-encoding is not passed on: the body would lose its label"


def whole_cases() -> list[Case]:
    return [
        Case("content-length", OK + HI, KEPT),
        Case("a length of nothing", OK + b"Content-Length: 0\r\n\r\n", Whole(b"")),
        Case("a length with space around", OK + b"Content-Length: \t 2 \t\r\n\r\nhi", KEPT),
        Case("leading zeros in a length", OK + b"Content-Length: 0002\r\n\r\nhi", KEPT),
        Case("chunked", CHUNKED + b"1\r\nh\r\n1\r\ni\r\n0\r\n\r\n", KEPT),
        Case("chunked in capitals", OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", KEPT),
        Case("chunk extensions", CHUNKED + b'1;a\r\nh\r\n1;b=c;d="e;f"\r\ni\r\n0;z\r\n\r\n', KEPT),
        Case("trailers", CHUNKED + b"2\r\nhi\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n", KEPT),
        Case("zeros before a chunk size", CHUNKED + b"0000000000000000002\r\nhi\r\n00\r\n\r\n", KEPT),
        Case("no body at all in chunks", CHUNKED + b"0\r\n\r\n", Whole(b"")),
        Case("until the connection closes", OK + b"\r\nhi", CLOSED, end="fin"),
        Case("nothing until it closes", OK + b"\r\n", Whole(b"", kept=False), end="fin"),
        Case("204", b"HTTP/1.1 204 No Content\r\n\r\n", Whole(b"", 204)),
        Case("304 with a length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Whole(b"", 304)),
        Case("HEAD with a length", OK + b"Content-Length: 9\r\n\r\n", Whole(b""), method="HEAD"),
        Case("HEAD with chunks", CHUNKED, Whole(b""), method="HEAD"),
        Case(
            "HEAD with neither",
            OK + b"\r\n",
            Whole(b""),
            method="HEAD",
            theirs=Whole(b"", kept=False),
            why=CAUTIOUS,
        ),
        Case("no reason", b"HTTP/1.1 200\r\n" + HI, KEPT),
        Case("an error status", b"HTTP/1.1 503 Busy\r\n" + HI, Whole(status=503)),
        Case("100 first", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + HI, KEPT),
        Case("103 with a header first", b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK + HI, KEPT),
        Case("several 1xx first", b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 102 P\r\n\r\n" * 3 + OK + HI, KEPT),
        Case("latin-1 in a header", OK + b"X: caf\xe9\r\n" + HI, KEPT),
        Case("an offer to upgrade that is none", OK + b"Upgrade: h2c\r\nConnection: upgrade\r\n" + HI, KEPT),
        Case("connection: close", OK + b"Connection: close\r\n" + HI, CLOSED),
        Case("close among others", OK + b"Connection: x, CLOSE\r\n" + HI, CLOSED),
        Case("close in a second field", OK + b"Connection: keep-alive\r\nConnection: close\r\n" + HI, CLOSED),
        Case("HTTP/1.0", b"HTTP/1.0 200 OK\r\n" + HI, CLOSED),
        Case("HTTP/1.0 kept alive", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + HI, KEPT),
        Case("HTTP/1.0 until it closes", b"HTTP/1.0 200 OK\r\n\r\nhi", CLOSED, end="fin"),
        Case("an answer, then FIN", OK + HI, CLOSED, end="fin"),
        Case("an answer, then RST", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n", CLOSED, end="reset", seen=b"hi"),
    ]


def surplus_cases() -> list[Case]:
    """What comes after an answer is never the next one, and never shows."""
    return [
        Case("a second answer after a counted one", OK + HI + EVIL, CLOSED),
        Case("a second answer after chunks", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + EVIL, CLOSED),
        Case("half of a second answer", OK + HI + EVIL[:20], CLOSED, theirs=KEPT, why=DROPS),
        Case("chunks of a second answer", (CHUNKED + b"2\r\nhi\r\n0\r\n\r\n") * 2, CLOSED),
        Case("a body larger than its length", OK + HI + b" and more", CLOSED, theirs=PROTOCOL, why=FAILS),
        Case(
            "rubbish after chunks", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n\x00\x01", CLOSED, theirs=PROTOCOL, why=FAILS
        ),
        Case(
            "a second answer after close",
            OK + b"Connection: close\r\n" + HI + EVIL,
            CLOSED,
            theirs=PROTOCOL,
            why=FAILS,
        ),
        Case("a body after 204", b"HTTP/1.1 204 No\r\n\r\n" + EVIL, Whole(b"", 204, kept=False)),
        Case(
            "a length in a 204",
            b"HTTP/1.1 204 No\r\nContent-Length: 4\r\n\r\n",
            Whole(b"", 204, kept=False),
            theirs=Whole(b"", 204),
            why=TRUSTS,
        ),
        Case(
            "chunks in a 204",
            b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
            Whole(b"", 204, kept=False),
            theirs=Whole(b"", 204),
            why=TRUSTS,
        ),
        Case("a body after HEAD", OK + HI, Whole(b"", kept=False), method="HEAD", theirs=PROTOCOL, why=FAILS),
        Case("a line break after a counted one", OK + HI + b"\r\n", CLOSED, theirs=KEPT, why=DROPS),
    ]


def broken_cases() -> list[Case]:
    return [
        Case("nothing, FIN", b"", UNREACHABLE, end="fin", method="POST"),
        Case("nothing, RST", b"", UNREACHABLE, end="reset", method="POST"),
        Case("FIN within the head", OK + b"Content-Le", UNREACHABLE, end="fin", method="POST"),
        Case("RST within the head", OK + b"Content-Le", UNREACHABLE, end="reset", method="POST"),
        Case("FIN after a 100", b"HTTP/1.1 100 C\r\n\r\n", UNREACHABLE, end="fin", method="POST"),
        Case("FIN within a counted body", OK + b"Content-Length: 5\r\n\r\nabc", TRUNCATED, end="fin"),
        Case(
            "RST within a counted body", OK + b"Content-Length: 5\r\n\r\nabc", TRUNCATED, end="reset", seen=b"abc"
        ),
        Case("FIN between chunks", CHUNKED + b"3\r\nabc\r\n", TRUNCATED, end="fin"),
        Case("FIN within a chunk", CHUNKED + b"3\r\nab", TRUNCATED, end="fin"),
        Case("FIN within a chunk's size", CHUNKED + b"3\r\nabc\r\n1", TRUNCATED, end="fin"),
        Case("FIN within the trailers", CHUNKED + b"3\r\nabc\r\n0\r\na: b\r\n", TRUNCATED, end="fin"),
        Case(
            "RST until it closes",
            OK + b"\r\nabc",
            TRUNCATED,
            end="reset",
            seen=b"abc",
            theirs=Whole(b"abc", kept=False),
            why="a reset is not the end that such an answer needs",
        ),
        Case("two lengths", OK + b"Content-Length: 2\r\n" + HI, PROTOCOL),
        Case("two lengths that differ", OK + b"Content-Length: 3\r\n" + HI, PROTOCOL),
        Case("two lengths in one field", OK + b"Content-Length: 2, 2\r\n\r\nhi", PROTOCOL),
        Case("a negative length", OK + b"Content-Length: -2\r\n\r\nhi", PROTOCOL),
        Case("a length with a sign", OK + b"Content-Length: +2\r\n\r\nhi", PROTOCOL),
        Case("a length in hexadecimal", OK + b"Content-Length: 0x2\r\n\r\nhi", PROTOCOL),
        Case("an empty length", OK + b"Content-Length:\r\n\r\nhi", PROTOCOL),
        Case("a length beyond 64 bits", OK + b"Content-Length: 18446744073709551617\r\n\r\nhi", PROTOCOL),
        Case("length and chunked", OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi", PROTOCOL),
        Case("chunked and length", OK + b"Transfer-Encoding: chunked\r\n" + HI, PROTOCOL),
        Case("a chunk size that is none", CHUNKED + b"zz\r\nhi\r\n0\r\n\r\n", PROTOCOL),
        Case("an empty chunk size", CHUNKED + b"\r\nhi\r\n0\r\n\r\n", PROTOCOL),
        Case("a negative chunk size", CHUNKED + b"-2\r\nhi\r\n0\r\n\r\n", PROTOCOL),
        Case("a chunk size with 0x", CHUNKED + b"0x2\r\nhi\r\n0\r\n\r\n", PROTOCOL),
        Case("a chunk size beyond 64 bits", CHUNKED + b"1" + b"0" * 16 + b"\r\nhi\r\n0\r\n\r\n", PROTOCOL),
        Case("a chunk longer than its size", CHUNKED + b"1\r\nhi\r\n0\r\n\r\n", PROTOCOL),
        Case("a length among the trailers", CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n", PROTOCOL),
        Case("NUL in a header", OK + b"X: a\x00b\r\n" + HI, PROTOCOL),
        Case("NUL in a name", OK + b"X\x00: b\r\n" + HI, PROTOCOL),
        Case("a bare CR in a header", OK + b"X: a\rY: b\r\n" + HI, PROTOCOL),
        Case("a header without a colon", OK + b"foo\r\n" + HI, PROTOCOL),
        Case("a header without a name", OK + b": b\r\n" + HI, PROTOCOL),
        Case("space before a colon", OK + b"Content-Length : 2\r\n\r\nhi", PROTOCOL, theirs=KEPT, why=STRICT),
        Case("space before the first header", OK + b" X: y\r\n" + HI, PROTOCOL, theirs=KEPT, why=STRICT),
        Case("a mail server", b"220 mail.example ESMTP\r\n", PROTOCOL),
        Case("a TLS alert", b"\x15\x03\x03\x00\x02\x02\x46", PROTOCOL),
        Case("HTTP/0.9", b"<html>hi</html>\r\n", PROTOCOL, end="fin"),
        Case("a status of two digits", b"HTTP/1.1 20 OK\r\n" + HI, PROTOCOL),
        Case("a status of four digits", b"HTTP/1.1 2000 OK\r\n" + HI, PROTOCOL),
        Case("a status in letters", b"HTTP/1.1 abc OK\r\n" + HI, PROTOCOL),
        Case("a version that is not", b"HTTP/1.2 200 OK\r\n" + HI, PROTOCOL),
        Case("ICY", b"ICY 200 OK\r\n" + HI, PROTOCOL),
        Case("a head too large", OK + b"X: " + b"y" * 70_000 + b"\r\n" + HI, PROTOCOL),
        Case("too many headers", OK + b"".join(b"x%d: y\r\n" % n for n in range(130)) + HI, PROTOCOL),
        Case(
            "an upgrade",
            b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxyz",
            PROTOCOL,
            theirs=Whole(b"", 101, kept=False),
            why="nobody asked for one",
        ),
        # Where aiohttp's client takes what we do not.
        Case("LF alone", OK.replace(b"\r", b"") + HI.replace(b"\r", b""), PROTOCOL, KEPT, STRICT),
        Case("LF alone in a header", OK + b"X: y\n" + HI, PROTOCOL, KEPT, STRICT),
        Case("LF alone in chunks", CHUNKED + b"2\nhi\n0\n\n", PROTOCOL),
        Case("a space after a chunk size", CHUNKED + b"2 \r\nhi\r\n0\r\n\r\n", PROTOCOL, KEPT, STRICT),
        Case("obs-fold", OK + b"X: a\r\n b\r\n" + HI, PROTOCOL, KEPT, STRICT),
        Case(
            "gzip, then chunked",
            OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            PROTOCOL,
            Whole(b""),
            LABEL,
        ),
        Case("gzip alone", OK + b"Transfer-Encoding: gzip\r\n\r\nhi", PROTOCOL, CLOSED, LABEL, end="fin"),
        Case("identity", OK + b"Transfer-Encoding: identity\r\n\r\nhi", PROTOCOL, CLOSED, LABEL, end="fin"),
        Case(
            "chunked twice",
            OK + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            PROTOCOL,
            theirs=Whole(b""),
            why=LABEL,
        ),
        Case(
            "chunked in HTTP/1.0",
            CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n",
            PROTOCOL,
            Whole(b"", kept=False),
            "RFC 9112 6.1: such framing is to be treated as faulty",
        ),
        Case("HTTP/2.0", b"HTTP/2.0 200 OK\r\n" + HI, PROTOCOL, theirs=CLOSED, why=VERSION),
        Case("RTSP", b"RTSP/1.0 200 OK\r\n" + HI, PROTOCOL, theirs=CLOSED, why=VERSION),
        Case("line breaks before the answer", b"\r\n\r\n" + OK + HI, PROTOCOL, theirs=KEPT, why=STRICT),
        Case(
            "a status below 100",
            b"HTTP/1.1 099 OK\r\n" + HI,
            PROTOCOL,
            theirs=Whole(status=99),
            why="there is no such class of status",
        ),
        Case("a 100 with a body", b"HTTP/1.1 100 C\r\nContent-Length: 2\r\n\r\nhi" + OK + HI, PROTOCOL),
        Case(
            "a 100 with a length",
            b"HTTP/1.1 100 C\r\nContent-Length: 2\r\n\r\n" + OK + HI,
            PROTOCOL,
            theirs=KEPT,
            why="RFC 9110 8.6 forbids it: another reader waits for that body",
        ),
    ]

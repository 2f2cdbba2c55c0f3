"""The strict reader of a JSON body: one value where all readers agree on it, else a refusal with the reason.
For every check, charge or route that needs more of a body than its top-level members."""

from __future__ import annotations

import json
import re
import sys
from itertools import accumulate
from math import isinf
from typing import Any, Final, NoReturn

import msgspec

from proxy.errors import Code, GatewayError

_UTF8_MARK: Final = b"\xef\xbb\xbf"
DEEPEST: Final = 1000  # levels
TOO_DEEP: Final = "it is nested too deeply"
COUNTED: Final = sys.version_info >= (3, 12)
"""Python 3.11 stops reading JSON near DEEPEST levels, 3.12 and 3.13 at 1,500 to 10,000, 3.14 no sooner."""
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_STEPS: Final = {ord("["): 1, ord("]"): -1}
_PASSES: Final = 16  # over the text, each for one level; deeper ones are counted bracket by bracket
DIGITS: Final = 309
"""Digits in succession that a number may have: those of the largest double. To read and to print more takes
quadratic time: 460 integers of 4,299 digits, 2 MB, held the event loop for 0.7 s."""
_STRIDE: Final = 31
_SAMPLED: Final = re.compile(rb"[0-9]{%d}" % ((DIGITS + 1) // _STRIDE))
_DIGIT: Final = re.compile(rb"[0-9]+")
_ZEROS: Final = bytes.maketrans(b"0123456789", b"0000000000")
_TOO_LONG: Final = b"0" * (DIGITS + 1)
_SKIMMED: Final = msgspec.json.Decoder(msgspec.Raw)


class Unreadable(ValueError):
    """JSON that Python's reader accepts, and others refuse or read differently."""


def utf8(body: bytes) -> str:
    """A body as text. Raises GatewayError 400 where it is not UTF-8, or begins with a byte order mark."""
    if body.startswith(_UTF8_MARK):
        raise GatewayError(
            Code.INVALID_JSON, "The request body begins with a byte order mark; send UTF-8 without one."
        )
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise GatewayError(
            Code.INVALID_JSON, f"The request body is not UTF-8 (byte {e.start}); send JSON encoded as UTF-8."
        ) from None


def read(body: bytes, what: str = "The request body", param: str | None = None) -> Any:
    """The value of a JSON text as read by Python's `json`, which vLLM uses.

    Raises GatewayError 400 for JSON that other readers refuse or read differently: text that is not UTF-8, NaN and
    Infinity, numbers beyond a double or with more than DIGITS digits, lone surrogates, duplicate members at any
    depth, nesting beyond DEEPEST levels or the recursion limit.
    """
    text = utf8(body)
    if number := long_number(body):
        raise _refusal(what, too_long(number), param)
    try:
        value = _DECODER.decode(text)
        if COUNTED and too_deep(body):
            raise Unreadable(TOO_DEEP)
        if lone_surrogate(body):
            raise Unreadable("a string has an escaped lone surrogate")
    except json.JSONDecodeError as e:
        where = "; is it UTF-16 or UTF-32?" if "\0" in text[:4] else ""
        raise _refusal(what, f"{e.msg} (character {e.pos}){where}", param) from None
    except RecursionError:
        raise _refusal(what, TOO_DEEP, param) from None
    except Unreadable as e:
        raise _refusal(what, str(e)[:200], param) from None
    return value


def too_deep(body: bytes) -> bool:
    """Whether a JSON text has more than DEEPEST levels of arrays and objects. The text must be valid JSON."""
    if len(body) <= 2 * DEEPEST or body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"") if rb"\"" in body else body
    brackets = b"".join(unescaped.split(b'"')[::2]).translate(_SQUARE, _NO_BRACKETS)
    for level in range(_PASSES):
        if len(brackets) <= 2 * (DEEPEST - level):
            return False
        brackets = brackets.replace(b"[]", b"")
    return _PASSES + max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > DEEPEST


def long_number(body: bytes) -> str:
    """The beginning of a number with more than DIGITS digits in succession; empty: there is none. The text must be
    valid JSON; of another, all are found that a reader meets before it fails. Takes linear time. Digits in strings
    may be any number: they mostly show only in the second step, as the first looks at each 31st byte."""
    if len(body) <= DIGITS or _SAMPLED.search(body[::_STRIDE]) is None:
        return ""
    text = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    zeros = text.translate(_ZEROS)
    at = quotes = 0
    while (start := zeros.find(_TOO_LONG, at)) >= 0:
        quotes += text.count(b'"', at, start)
        if not quotes % 2:
            return text[start : start + 32].decode()
        run = _DIGIT.match(zeros, start)
        assert run is not None
        at = run.end()
    return ""


def too_long(number: str) -> str:
    """Why such a number is refused."""
    return f"the number {number}… is too large: it has more than {DIGITS} digits"


def read_leniently(text: str) -> Any:
    """JSON inside a string, which an engine may decode again; objects as lists of pairs, which keep duplicate
    members. Raises ValueError or RecursionError."""
    return _PAIRS.decode(text)


def lone_surrogate(body: bytes) -> bool:
    """Whether a string of a JSON text has an escaped lone surrogate. The text must be valid JSON otherwise."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return False
    try:
        _SKIMMED.decode(body)  # except for constants, it refuses nothing else that Python accepts
    except (msgspec.DecodeError, RecursionError):
        return True
    return False


def _refusal(what: str, why: str, param: str | None) -> GatewayError:
    return GatewayError(Code.INVALID_JSON, f"{what} is not valid JSON: {why}.", param=param)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Unreadable(f"the member {name[:64]!r} is given twice; give it once")
            seen.add(name)
    return members


def _finite(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise Unreadable(f"the number {text[:32]} is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise Unreadable(f"{text} is not a JSON value")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_constant)
_PAIRS: Final = json.JSONDecoder(object_pairs_hook=lambda pairs: pairs, parse_int=str, parse_float=str)

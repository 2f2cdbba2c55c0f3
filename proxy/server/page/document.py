"""A page's HTML document with its style and script inlined, and its headers. It holds no data and needs no key."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from importlib.resources import files
from typing import Final, NamedTuple

from proxy.server.respond import Headers

_COMMON: Final = (
    ("content-type", "text/html; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)


class Document(NamedTuple):
    html: bytes
    headers: Headers


def document(package: str = "proxy.server.page") -> Document:
    """Put together from the files of that package, with a policy that lets run what is inside, by its hash, and
    nothing else: no other script, no other host, no frame around it, and no way from a text to HTML
    (`require-trusted-types-for`)."""
    folder = files(package)
    html, style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    if "</style" in style or "</script" in script:
        raise AssertionError("the page would end inside itself")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    page = html.replace("/*style*/", style).replace("/*script*/", script)
    return Document(page.encode(), (*_COMMON, ("content-security-policy", policy)))


def _hash(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()

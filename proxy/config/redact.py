"""How a value that may hold a secret is shown: URLs, paths, arguments, and texts that may repeat a known
secret. In doubt it is hidden."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, unquote_plus

HIDDEN: Final = "***"
LEAST: Final = 4  # characters: a shorter secret would match parts of ordinary words
_OPTIONS: Final = frozenset(
    {
        *("db", "protocol", "client_name", "timeout", "max_connections", "health_check_interval"),
        *("socket_timeout", "socket_connect_timeout", "socket_read_size", "socket_keepalive", "retry_on_timeout"),
        *("ssl", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"),
        *("ssl_check_hostname", "ssl_min_version", "ssl_ciphers", "legacy_responses"),
    }
)
"""Options of a URL that hold no secret. Any other is hidden, except for the names in _SECRET."""

_SECRET: Final = frozenset({"username", "password", "pass", "token", "secret", "key", "api_key", "ssl_password"})

_SCHEME: Final = re.compile(r"\s*([a-z][a-z0-9+.-]{0,31}):(?=/)", re.IGNORECASE)
_URL: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?:(?P<user>[^/?#]*)@)?"
    r"(?P<host>(?:[a-z0-9_.%-]*|\[[0-9a-f:.%a-z]+\])(?::[0-9]{1,5})?"
    r"(?:(?<=.),(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?)*)"
    r"(?P<path>/[^?#\s\"'@]*)?"
    r"(?:\?(?P<query>[^#\s]*))?",
    re.IGNORECASE,
)
_SEVERAL: Final = re.compile(r"rediss?\+(?:sentinel|cluster)", re.IGNORECASE)  # name several hosts
_USER: Final = re.compile(
    r"^([^:@]*\b(?:rediss?(?:\+[a-z]{1,16})?|unix|https?)://)?.*@", re.DOTALL | re.IGNORECASE
)
_PATH: Final = re.compile(
    r"(~|\.{0,2})/[\w./ @+,=-]{0,400}|([\w.-]+/)*[\w.-]{1,64}\.[a-z]{2,8}|[a-z][a-z_-]{0,11}|\.{1,2}"
)
_WORD: Final = re.compile(r"[a-z][a-z_-]{0,11}|--?[a-z][a-z_-]{0,40}")
HOST_AND_PORT: Final = re.compile(r"[A-Za-z0-9.-]{1,253}:[0-9]{1,5}/?")
_IPV4: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_QUERY: Final = re.compile(r"([?&])([^=&#\s]*)=([^&#\s\"']*)")


def shown_url(text: str) -> str:
    """A setting that should be a URL. A text that is not a valid one is hidden after its scheme."""
    found = _URL.fullmatch(text)
    several = found is not None and "," in found["host"] and not _SEVERAL.fullmatch(found["scheme"])
    if found is None or several or "%40" in found["host"]:
        begin = _SCHEME.match(text)
        if begin is not None:
            return f"{begin[1]}://{HIDDEN}"
        plain = _WORD.fullmatch(text) or HOST_AND_PORT.fullmatch(text) or _IPV4.fullmatch(text)
        return text if not text or plain else HIDDEN
    user = f"{HIDDEN}@" if found["user"] is not None else ""
    query = "" if found["query"] is None else "?" + "&".join(map(_option, found["query"].split("&")))
    path = found["path"] or ""
    scheme = found["scheme"].lower()
    below = "/[A-Za-z0-9._-]{1,200}(/[0-9]{0,9})?" if scheme.endswith("+sentinel") else "/?[0-9]{0,9}"
    if scheme.startswith("redis") and not re.fullmatch(below, path):
        path = f"/{HIDDEN}"
    return f"{found['scheme']}://{user}{found['host']}{path}{query}"


def shown_urls(text: str) -> str:
    """Several URLs, separated by commas or spaces."""
    return ", ".join(map(shown_url, text.replace(",", " ").split()))


def shown_address(url: str) -> str:
    """Where a URL leads: without user, password and query."""
    return shown_url(url).partition("?")[0].replace(f"{HIDDEN}@", "", 1)


def _option(text: str) -> str:
    name, given, _ = text.partition("=")
    if given and name.lower() in _OPTIONS:
        return text
    return f"{name}={HIDDEN}" if given and name.lower() in _SECRET else HIDDEN


def _queries(text: str) -> str:
    return _QUERY.sub(lambda found: found[1] + _option(f"{found[2]}={found[3]}"), text)


def mask_url(text: str) -> str:
    """A text that may contain a URL, with possible secrets hidden: everything before the last @, and unknown
    options of the query."""
    of_url = "://" in text
    text = _USER.sub(r"\1***@", text, count=1)
    if of_url:
        return _queries(text)
    return re.sub(r"([?&](?:password|pass|token|secret|key)=)[^&#]*", r"\1***", text, flags=re.IGNORECASE)


def shown_path(text: str) -> str:
    """A setting that should be a file's path, quoted. Hidden where it may be a key in place of a path."""
    if not text or _PATH.fullmatch(text):
        return repr(text)
    return f"{HIDDEN} ({len(text)} characters, not shown: not a file path)"


def shown_word(text: str) -> str:
    """An unknown argument, quoted; hidden where it may be part of a secret."""
    if _URL.fullmatch(text):
        return repr(shown_url(text))
    return repr(text) if _WORD.fullmatch(text) else f"{HIDDEN} ({len(text)} characters)"


def secrets_in(url: str) -> list[str]:
    """The secrets in a URL: user, password, unknown options; as written and decoded."""
    found = re.match(r"[a-z+]*://(?:([^/?#]*)@)?[^?#]*(\?[^#]*)?", url, re.IGNORECASE)
    if found is None:
        return []
    user, _, password = (found[1] or "").partition(":")
    raw = [password, user if user != "default" else ""]
    raw += [value for _, name, value in _QUERY.findall(found[2] or "") if name.lower() not in _OPTIONS]
    return [value for text in raw for value in dict.fromkeys((text, unquote(text), unquote_plus(text))) if value]


class Known:
    """The secrets in use, removed from foreign texts: messages of an engine or Redis may repeat them."""

    def __init__(self) -> None:
        self._known: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Known {len(self._known)}>"

    def hide(self, secrets: Iterable[str]) -> None:
        """Add secrets. Longer ones are replaced first: one may contain another."""
        more = {*self._known, *(secret for secret in secrets if len(secret) >= LEAST)}
        self._known = tuple(sorted(more, key=len, reverse=True))

    def out_of(self, text: str) -> str:
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, HIDDEN)
        return text

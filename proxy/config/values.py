"""Readers of single values: text or TOML in, the typed value out. A ValueError says what a right value is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

from proxy.config.redact import HOST_AND_PORT, shown_url
from proxy.config.redact import mask_url as mask_url

_HOST_TEXT: Final = re.compile(r"[A-Za-z0-9._*-]+(:[0-9]*)?")  # other texts may hold a secret
_NUMBER: Final = r"[+-]?(?:[0-9]+(?:_[0-9]+)*\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
_QUANTITY: Final = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_LONGEST: Final = 64  # characters of a number with its unit
LEAST_RATE: Final = 1e-6  # requests a second, one in twelve days: no header can hold a longer wait
LEAST_SECRET: Final = 16  # characters
_MOST: Final = 10**18 - 1  # of a whole number without a bound: an integer of TOML has 64 bits
_GROUPED: Final = 100_000  # from here on, digits of a bound are grouped
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_PORTS: Final = {"http": 80, "https": 443}
_ORIGIN: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_UNIX: Final = re.compile(r"unix:|http\+unix:", re.IGNORECASE)
_UNIX_PATH: Final = 107  # bytes of sun_path, without the terminator
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # of a path that is not UTF-8: TOML cannot hold it
_ENDPOINTS: Final = ("/chat/completions", "/completions", "/embeddings", "/models")

Reader = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """A kind of quantity, and how it is written."""

    noun: str
    units: Mapping[str, int]  # in multiples of the smallest
    own: str  # the unit of a number alone
    note: str = ""
    any_case: bool = False

    def factor(self, unit: str) -> int | None:
        return self.units.get(unit.lower() if self.any_case else unit)

    def text(self, value: float) -> str:
        """A bound as people write it."""
        if self.any_case:
            return size_text(int(value) * self.units[self.own])
        return _number_text(value) + (self.own if value else "")


def _quantity(
    measure: Measure, low: float, high: float | None = None, *, whole: bool = True, example: str = ""
) -> Reader:
    """A reader of a number in the measure's own unit; a text may name another one. Where `whole`, the value is an
    int, and must be given as one in TOML."""
    limits = (
        f"at least {measure.text(low)}" if high is None else f"from {measure.text(low)} to {measure.text(high)}"
    )
    form = f"must be {measure.noun} {'of ' if high is None else ''}{limits}"
    form += (f", such as {example}" if example else "") + (f"; {measure.note}" if measure.note else "")

    def read(raw: object) -> Any:
        wrong = ValueError(form + _remedy(raw, whole))
        if isinstance(raw, str):
            raw = _in_own_unit(raw, measure, whole)
        if isinstance(raw, bool) or not isinstance(raw, int if whole else int | float):
            raise wrong
        try:
            value = raw if whole else float(raw)
        except OverflowError:
            raise wrong from None
        if not whole and not math.isfinite(value):
            raise wrong
        if value < low or (high is not None and value > high):
            raise ValueError(f"must be {limits}")
        if whole and value > _MOST:
            raise ValueError(f"must be at most {_number_text(_MOST)}")
        return value

    return read


def _in_own_unit(text: str, measure: Measure, whole: bool) -> float | None:
    """The quantity that a text names; None where it is none, or not whole as it must be."""
    found = _QUANTITY.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    factor = measure.factor(found[2] or measure.own) if found else None
    if found is None or factor is None:
        return None
    value = Fraction(found[1].replace("_", "")) * factor / measure.units[measure.own]
    if whole:
        return int(value) if value.denominator == 1 and abs(value) <= _MOST else None
    try:
        return float(value)
    except OverflowError:
        return None


def _remedy(raw: object, whole: bool) -> str:
    if isinstance(raw, str) and "," in raw:
        return "; digits may be grouped by _, as in 1_000_000"
    if isinstance(raw, float) and whole:
        return '; in TOML without a point or an exponent: 1_000_000 or "1e6"'
    return ""


def _number_text(value: float) -> str:
    """A bound as people write it: 1,000,000 for 1e6."""
    if value != int(value):
        return f"{value:g}"
    return f"{int(value):,}" if abs(value) >= _GROUPED else str(int(value))


_NUMBERS: Final = {"": 1}
_DURATIONS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES: Final = (
    {"b": 1}
    | {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}
    | {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)}
)
_COUNT: Final = Measure("a whole number", _NUMBERS, "")
_REAL: Final = Measure("a number", _NUMBERS, "")
_SIZE_NOTE: Final = "KiB, MiB and GiB are powers of 1024, KB, MB and GB of 1000"
_BYTES: Final = Measure("a size", _SIZES, "b", f"a number alone is bytes, {_SIZE_NOTE}", any_case=True)
_MEBIBYTES: Final = Measure("a size", _SIZES, "mib", f"a number alone is MiB, {_SIZE_NOTE}", any_case=True)
_SECONDS: Final = Measure("a duration", _DURATIONS, "s", "a number alone is seconds")
_WHOLE_SECONDS: Final = Measure("a duration in whole seconds", _DURATIONS, "s", "a number alone is seconds")
_MILLISECONDS: Final = Measure("a duration", _DURATIONS, "ms", "a number alone is milliseconds")
_WHOLE_MILLISECONDS: Final = Measure(
    "a duration in whole milliseconds", _DURATIONS, "ms", "a number alone is milliseconds"
)


def whole(low: int, high: int | None = None, *, example: str = "") -> Reader:
    return _quantity(_COUNT, low, high, example=example)


def number(low: float, high: float | None = None, *, example: str = "") -> Reader:
    return _quantity(_REAL, low, high, whole=False, example=example)


def seconds(low: float, high: float | None = None, *, whole: bool = False) -> Reader:
    example = "10s, 2m or 1h" if whole else "500ms, 10s, 2m or 1h"
    return _quantity(_WHOLE_SECONDS if whole else _SECONDS, low, high, whole=whole, example=example)


def milliseconds(low: float, high: float | None = None, *, whole: bool = False) -> Reader:
    measure = _WHOLE_MILLISECONDS if whole else _MILLISECONDS
    return _quantity(measure, low, high, whole=whole, example="50ms, 0.5s or 1s")


def size(low: int, high: int = 2**50) -> Reader:
    """Bytes."""
    return _quantity(_BYTES, low, high, example="65536, 64KiB or 16MiB")


def mebibytes(low: int, high: int) -> Reader:
    return _quantity(_MEBIBYTES, low, high, example="64MiB or 1GiB")


def or_word(word: str, read_number: Reader) -> Reader:
    """Reads `word` as 0, and everything else by `read_number`."""

    def read(raw: object) -> int:
        if isinstance(raw, str) and raw.strip().lower() == word:
            return 0
        try:
            return int(read_number(raw))
        except ValueError as e:
            raise ValueError(f"must be {word}, or {str(e).removeprefix('must be ')}") from None

    return read


def size_or(word: str, low: int) -> Reader:
    """A size in bytes, or `word` or 0, which are read as 0."""
    as_size = or_word(word, size(low))

    def read(raw: object) -> int:
        return 0 if raw in (0, "0") else int(as_size(raw))

    return read


def whole_or(word: str, low: int, high: int | None = None, *, example: str = "") -> Reader:
    """A whole number, or `word`, which is read as 0."""
    return or_word(word, whole(low, high, example=example))


def namespace(raw: object) -> str:
    """The prefix of keys in a shared Redis."""
    text = raw.strip() if isinstance(raw, str) else ""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores")
    return text


def switch(raw: object) -> bool:
    text = str(raw).strip().lower()
    if text not in _TRUE | _FALSE:
        raise ValueError("must be on or off (or true/false, yes/no, 1/0)")
    return text in _TRUE


def choice(*known: str) -> Reader:
    def read(raw: object) -> str:
        text = raw.strip().lower() if isinstance(raw, str) else ""
        if text not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return text

    return read


def names(*known: str) -> Reader:
    """Some of the known names, comma-separated, in their known order without duplicates; or `none`."""

    def read(raw: object) -> str:
        items = [raw] if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple) or not all(isinstance(item, str | int) for item in items):
            raise ValueError(f"must be some of {', '.join(known)}, or none")
        given = {name for item in items for name in str(item).lower().replace(",", " ").split()} - {"none"}
        if given - set(known):
            raise ValueError(f"must be some of {', '.join(known)}, or none")
        return ",".join(name for name in known if name in given)

    return read


def host(raw: object) -> str:
    text = raw.strip() if isinstance(raw, str) else ""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    right = "must be an address or a host name alone, such as 127.0.0.1, ::1 or 0.0.0.0"
    if ":" in text or re.fullmatch(r"[0-9.]+", text):
        try:
            ip_address(text)
        except ValueError:
            raise ValueError(right) from None
    elif not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", text):
        raise ValueError(right)
    return text


def hosts(raw: object) -> tuple[str, ...]:
    """Values of a Host header, without ports; `*.` before a name for all subdomains, `*` for any."""
    from proxy.wire.http import read_host  # here: the commands that need no engine start without that room

    items = raw.replace(",", " ").split() if isinstance(raw, str) else raw
    wrong = "must be host names or addresses without ports, such as api.example.com, *.example.com or [::1], or *"
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(wrong)
    found = []
    for item in (part for each in items for part in each.replace(",", " ").split()):
        if item != "*":
            below = item.startswith("*.")
            name = item[2:] if below else item
            bare = name.removeprefix("[").removesuffix("]") if ":" in name else name
            try:
                name = read_host(f"[{bare}]" if ":" in name else name)
            except ValueError:
                shown = f": not {item[:64]!r}" if _HOST_TEXT.fullmatch(item) else ""
                raise ValueError(wrong + shown) from None
            item = f"*.{name}" if below else name
        found.append(item)
    return tuple(dict.fromkeys(found))


def origins(raw: object) -> tuple[str, ...]:
    """Origins as browsers write them in `Origin`, or `*` alone."""
    from proxy.wire.http import read_host  # here: the commands that need no engine start without that room

    items = [raw] if isinstance(raw, str) else raw
    wrong = "must be origins as browsers send them, scheme://host[:port], such as https://chat.example, or * alone"
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(wrong)
    texts = [text for item in items for text in item.replace(",", " ").split()]
    if texts and set(texts) == {"*"}:
        return ("*",)
    found = []
    for text in texts:
        match = _ORIGIN.fullmatch(text)
        if match is None or not 0 < int(match[3] or 1) < 65536:
            raise ValueError(wrong)
        scheme, port = match[1].lower(), int(match[3] or 0)
        try:
            name = read_host(match[2])
        except ValueError:
            raise ValueError(wrong) from None
        name = f"[{name}]" if ":" in name else name
        found.append(f"{scheme}://{name}" + (f":{port}" if port not in (0, _PORTS.get(scheme)) else ""))
    return tuple(dict.fromkeys(found))


def redis_url(raw: object) -> str:
    """`auto`, `off`, or a URL of Redis."""
    text = raw.strip() if isinstance(raw, str) else ""
    return text.lower() if text.lower() in ("auto", "off") else _redis_url(text, "must be auto, off, or a URL: ")


def own_redis_url(raw: object) -> str:
    """A URL of Redis, or `none`."""
    text = raw.strip() if isinstance(raw, str) else ""
    return "" if raw == "" or text.lower() == "none" else _redis_url(text, "must be none, or a URL: ")


def _redis_url(text: str, begin: str) -> str:
    right = (
        f"{begin}redis://host:6379/0, rediss://host:6379/0, unix:///path/to/socket, "
        "redis+sentinel://host1,host2/service/0 or redis+cluster://host1,host2"
    )
    base, _, kind = text.partition("://")[0].lower().partition("+")
    if kind:
        if base not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
            raise ValueError(right)
        _, path = redis_hosts(text, 6379)
        if kind == "sentinel" and not re.fullmatch(r"/[A-Za-z0-9._-]{1,200}(/[0-9]{0,9})?", path):
            raise ValueError("must name the service after the Sentinels: redis+sentinel://host1,host2/service/0")
        if kind == "cluster" and path not in ("", "/", "/0"):
            raise ValueError("must have no path: a Redis Cluster has no database but 0")
        return text
    parts = _split(text, right)
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ValueError(right)
    elif parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError(right)
    elif not re.fullmatch(r"/?[0-9]{0,9}", parts.path):
        raise ValueError("must have a database number, or nothing, after the host: redis://host:6379/0")
    return text


def redis_hosts(url: str, port: int) -> tuple[tuple[tuple[str, int], ...], str]:
    """The hosts of a URL that names several, each with its port, else `port`; and its path. Raises ValueError."""
    rest = re.split("[?#]", url.partition("://")[2], maxsplit=1)[0]
    netloc, slash, path = rest.partition("/")
    hosts = []
    for item in netloc.rpartition("@")[2].split(","):
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253}))(?::([0-9]{1,5}))?", item)
        if match is None or not 0 < int(match[3] or port) < 65536:
            raise ValueError("must have one or more hosts with or without a port: host1:6379,host2:6379")
        hosts.append(((match[1] or match[2]).lower(), int(match[3] or port)))
    if len(set(hosts)) < len(hosts):
        raise ValueError("must name each host once")
    return tuple(hosts), slash + path


def backend_urls(raw: object) -> tuple[str, ...]:
    items = [raw] if isinstance(raw, str) else raw
    right = "must be URLs, such as http://127.0.0.1:8000"
    if not isinstance(items, list | tuple):
        raise ValueError(right)
    if not all(isinstance(each, str) and each.strip(", ") for each in items):
        raise ValueError(right)  # an empty one is a variable of the environment that is not set
    texts = [url for item in items for url in item.replace(",", " ").split()]
    urls = []
    for text in texts:
        try:
            urls.append(_backend_url(text))
        except ValueError as e:
            raise ValueError(f"{e}; {shown_url(text)!r} is not" if len(texts) > 1 else str(e)) from None
    for at, url in enumerate(urls):
        if url in urls[:at]:
            raise ValueError(f"must name each engine once, and names {url} twice")
    return tuple(urls)


def _backend_url(text: str) -> str:
    """`http://Host:80/base/v1/` is `http://host/base`: the same engine is always written the same."""
    if _UNIX.match(text):
        return _unix_url(text)
    if text[:4].lower() == "dns+":
        return f"dns+{_name_url(text[4:])}"
    right = (
        "must be an engine's http:// or https:// address, such as http://127.0.0.1:8000, or a Unix socket, "
        "such as unix:///run/vllm.sock"
    )
    if HOST_AND_PORT.fullmatch(text):
        raise ValueError(f"must begin with http:// or https://, as in http://{text}")
    parts = _split(text, right)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(right)
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password: an engine's URL is shown in logs and metrics")
    if "?" in text or "#" in text:
        raise ValueError(right + ", without ? or #")
    path = _base(parts.path)
    try:
        name = host(parts.hostname)
    except ValueError:
        raise ValueError(right) from None
    name = f"[{name}]" if ":" in name else name
    port = "" if parts.port in (None, _PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{name}{port}{path}"


def _name_url(text: str) -> str:
    """The URL after `dns+`: a name that DNS has addresses or SRV records for."""
    right = "must be dns+http://NAME:PORT, or for SRV records dns+http://_SERVICE._tcp.NAME"
    if not re.match("https?://", text, re.IGNORECASE):
        raise ValueError(right)
    url = _backend_url(text)
    parts = urlsplit(url)
    name = parts.hostname or ""
    if not re.fullmatch(r"[a-z0-9_.-]{1,253}", name) or re.fullmatch("[0-9.]+", name):
        raise ValueError(right)
    srv = name.startswith("_")
    if srv and parts.port is not None:
        raise ValueError("must have no port after an SRV name: the records have it")
    if not srv and parts.scheme == "https":
        raise ValueError("must be an SRV name with dns+https://: certificates are for names, not for addresses")
    return url


def _unix_url(text: str) -> str:
    """`unix:/socket` and `unix:///socket` as for Redis and gRPC, `http+unix://%2Fsocket/base` as for Python's HTTP
    clients. Normalised to `unix:///socket` where there is no base."""
    right = "must be a Unix socket's full path, such as unix:///run/vllm.sock or http+unix://%2Frun%2Fvllm.sock"
    scheme, _, rest = text.partition(":")
    base = ""
    if scheme.lower() == "unix":
        path = rest.removeprefix("//")
    else:
        encoded, slash, after = rest.removeprefix("//").partition("/")
        if not re.fullmatch(r"[\x21-\x7e]+", encoded + after):
            raise ValueError(right)
        path, base = unquote(encoded, errors="replace"), _base(slash + after)
    if (
        not re.fullmatch(r"/[^\x00-\x1f\x7f\ufffd\ud800-\udfff]+", path)
        or path.endswith("/")
        or "?" in rest
        or "#" in rest
    ):
        raise ValueError(right)
    if len(path.encode()) > _UNIX_PATH:
        raise ValueError(f"must have a path of at most {_UNIX_PATH} bytes: the system allows no longer one")
    plain = re.fullmatch(r"(/[\w.@:+-]+)+", path, re.ASCII)
    return f"unix://{path}" if plain and not base else f"http+unix://{quote(path, safe='')}{base}"


def _base(path: str) -> str:
    """The prefix of an engine's paths before /v1."""
    base = path.rstrip("/").removesuffix("/v1").rstrip("/")
    for endpoint in _ENDPOINTS:
        if base.endswith(endpoint):
            raise ValueError(f"must be the engine's address alone, without {endpoint}")
    return base


def file(raw: object) -> str:
    """A file's path; `none` or nothing for none. Whether it can be read is checked on reading."""
    if not isinstance(raw, str) or "\0" in raw or "://" in raw:
        raise ValueError("must be the path of a file, or none")
    if _SURROGATE.search(raw):
        raise ValueError("must be a path in UTF-8, or none")
    path = raw.strip()
    return "" if path == "none" else path


def secret(raw: object) -> str:
    """A key as it goes into a header; `none` or nothing for none. The error does not repeat it."""
    text = raw.strip() if isinstance(raw, str) else None
    if text is None or not re.fullmatch(r"[\x21-\x7e]*", text):
        raise ValueError("must be a key of printable ASCII characters without spaces, or none")
    return "" if text == "none" else text


def salt_secret(raw: object) -> str:
    """A secret of at least LEAST_SECRET characters; `auto`; `none` or nothing for none. The error does not repeat
    it."""
    try:
        text = secret(raw)
    except ValueError:
        text = "?"
    if isinstance(raw, str) and raw and not raw.strip():
        text = "?"  # a blank is a mistake, which must not switch the salt off
    if text not in ("", "auto") and len(text) < LEAST_SECRET:
        raise ValueError(
            f"must be auto, none, or at least {LEAST_SECRET} printable ASCII characters without spaces"
        )
    return text


def networks(raw: object) -> tuple[str, ...]:
    """Addresses and networks, normalised; `unix` for peers on a Unix socket."""
    items = [raw] if isinstance(raw, str) else raw
    right = "must be addresses or networks, such as 10.0.0.0/8 or ::1, or unix"
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(right)
    found = []
    for text in (text for item in items for text in item.replace(",", " ").split()):
        try:
            found.append("unix" if text == "unix" else str(ip_network(text)))
        except ValueError as e:
            host_bits = "host bits" in str(e)
            raise ValueError(
                right + ("; a network has no host bits: 10.0.0.0/8, not 10.1.2.3/8" if host_bits else "")
            ) from None
    return tuple(dict.fromkeys(found))


def _split(text: str, right: str) -> SplitResult:
    """urlsplit, with errors that do not repeat the URL, which may hold a password."""
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError(right)
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(right) from None
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{right}; the port is a number from 1 to 65535") from None
    if port == 0:
        raise ValueError("must not have port 0")
    return parts


def size_text(count: int) -> str:
    """A size as text that a size setting reads: 1048576 is `1MiB`."""
    for power, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= power and count % power == 0:
            return f"{count // power}{name}"
    return str(count)

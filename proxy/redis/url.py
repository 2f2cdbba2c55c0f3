"""Where a Redis is and how to log in, read from a URL: one server, the Sentinels of one, or a Cluster."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from proxy.config import redis_hosts, shown_path
from proxy.errors import SettingsError
from proxy.redis.resp import Login

SENTINEL_PORT: Final = 26379
_OURS: Final = frozenset({"username", "password", "host", "port", "path", "db", "client_name", "protocol"})
_PLACE: Final = frozenset({"host", "port", "path", "db"})
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_MEANINGLESS: Final = frozenset(
    {  # redis-py's pool and timeouts; here the settings bound them
        "socket_timeout",
        "socket_connect_timeout",
        "socket_read_size",
        "socket_keepalive",
        "retry_on_timeout",
        "max_connections",
        "health_check_interval",
        "timeout",
        "legacy_responses",
    }
)
_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")

Kind = Literal["server", "sentinel", "cluster"]


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis, and the login there."""

    login: Login
    host: str = "localhost"
    port: int = 6379
    path: str | None = None  # of a Unix socket, in place of host and port
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return (
            f"unix://{self.path}"
            if self.path
            else f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A Redis URL, read."""

    kind: Kind
    address: RedisAddress  # of a Cluster and of Sentinels: the login and TLS alone
    hosts: tuple[tuple[str, int], ...] = ()  # seeds of the Cluster, or its Sentinels
    service: str = ""  # the name by which Sentinels know the master
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    """Login and TLS as redis-py's clients take them."""
    sentinel_login: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        if self.kind == "server":
            return str(self.address)
        scheme = f"{'rediss' if self.address.tls else 'redis'}+{self.kind}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{scheme}://{hosts}{self.service and '/' + self.service}"


def address(url: str) -> RedisAddress:
    """The address in a redis://, rediss:// or unix:// URL, as redis-py reads it: user, password, database,
    `client_name`, `protocol`, `ssl_*`. Raises SettingsError, whose text holds no secret of the URL."""
    return _read(url)[0]


def read_url(url: str) -> RedisUrl:
    """A URL of any kind: besides those of `address` redis+sentinel://HOST,HOST/SERVICE/0 and
    redis+cluster://HOST,HOST, or rediss+ for TLS. Raises SettingsError, whose text holds no secret of the URL."""
    kinds: dict[str, Kind] = {"sentinel": "sentinel", "cluster": "cluster"}
    scheme, _, rest = url.partition("://")
    base, _, kind_name = scheme.lower().partition("+")
    kind = kinds.get(kind_name)
    if kind is None:
        return RedisUrl("server", address(url))
    try:
        hosts, path = redis_hosts(url, SENTINEL_PORT if kind == "sentinel" else 6379)
    except ValueError as e:
        raise SettingsError(f"The Redis URL {e}.") from None
    service, _, db = path.strip("/").partition("/") if kind == "sentinel" else ("", "", path.strip("/"))
    if db and not (db.isascii() and db.isdigit()):
        raise SettingsError("The Redis URL must have a database number, or nothing, at the end of its path.")
    if kind == "cluster" and db.strip("0"):
        raise SettingsError("The Redis URL names a database; a Redis Cluster has none but 0.")
    if kind == "sentinel" and not service:
        raise SettingsError("The Redis URL must name the service: redis+sentinel://HOST,HOST/SERVICE/0.")
    user, at, _ = rest.partition("/")[0].partition("?")[0].rpartition("@")
    query = parse_qsl(rest.partition("#")[0].partition("?")[2], keep_blank_values=True)
    plain = urlencode([(name, value) for name, value in query if name not in _SENTINEL_LOGIN])
    where, options = _read(f"{base}://{user}{at}localhost/{db}{plain and '?' + plain}")
    login = {name.removeprefix("sentinel_"): value for name, value in query if name in _SENTINEL_LOGIN}
    return RedisUrl(kind, where, hosts, service, options, login)


def _read(url: str) -> tuple[RedisAddress, dict[str, Any]]:
    """The address in a URL of one server, and its login and TLS as redis-py's options."""
    # Imported here: without a Redis it costs no start-up time.
    from redis.asyncio.connection import SSLConnection, parse_url
    from redis.exceptions import RedisError

    try:
        options: dict[str, Any] = dict(parse_url(url))
        tls = options.pop("connection_class", None) is SSLConnection
        secure = {name: options.pop(name) for name in tuple(options) if name.startswith("ssl_")}
        unknown = sorted(options.keys() - _OURS - _MEANINGLESS)
        if unknown:
            raise SettingsError(
                f"The Redis URL has the option {unknown[0][:40]!r}, which is unknown; known are db, "
                "client_name, protocol and the ssl_ options of redis-py."
            )
        if options.get("protocol", 3) not in (2, 3):
            raise SettingsError("The Redis URL's protocol must be 2 or 3.")
        context = SSLConnection(**secure).ssl_context.get() if tls else None
    except (ValueError, TypeError, RedisError, OSError) as e:
        unreadable = _unreadable(url)
        if unreadable:
            raise SettingsError(unreadable) from None
        reason = e.strerror if isinstance(e, OSError) and e.strerror else type(e).__name__
        raise SettingsError(
            f"Invalid Redis URL ({reason}); expected redis://HOST:6379/0, "
            "rediss://HOST:6380/0?ssl_ca_certs=FILE or unix:///PATH."
        ) from None
    login = Login(
        options.get("username"),
        options.get("password"),
        int(options.get("db") or 0),
        options.get("client_name"),
        options.get("protocol", 3),
    )
    where = RedisAddress(
        login, options.get("host") or "localhost", options.get("port") or 6379, options.get("path"), context
    )
    known = {name: options[name] for name in _OURS - _PLACE if name in options}
    return where, known | ({"ssl": True} | secure if tls else {})


def _unreadable(url: str) -> str:
    """What is wrong with the first of its files that cannot be read; empty: all can."""
    for option, path in files_of(url).items():
        try:
            with open(path, "rb"):
                pass
        except OSError as e:
            return f"{option} = {shown_path(path)}: {e.strerror or e}"
    return ""


def files_of(url: str) -> dict[str, str]:
    """The files that a Redis URL names, by option."""
    query = parse_qs(urlsplit(url).query)
    return {name: query[name][0] for name in _FILES if name in query}

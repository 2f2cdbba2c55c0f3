"""How one value is read, at its bounds and a step beyond, and the words of each refusal."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config import values
from proxy.config.values import Reader

WRONG = "(wrong)"

WHOLE = values.whole(1, 9)
OPEN = values.whole(-5)
NUMBER = values.number(0.5, 2.0)
SIZE = values.size(1024)
SIZE_OR = values.size_or("auto", 1024)
WHOLE_OR = values.whole_or("auto", 1, 9)
CHOICE = values.choice("on", "off")
NAMES = values.names("a", "b", "c")
SECONDS = values.seconds(0.5, 60)

READ: list[tuple[Reader, Any, Any]] = [
    (WHOLE, 1, 1),
    (WHOLE, " 9 ", 9),
    (WHOLE, "+9", 9),
    (OPEN, "-5", -5),
    (OPEN, "1" * 18, int("1" * 18)),
    (NUMBER, 0.5, 0.5),
    (NUMBER, "2", 2.0),
    (NUMBER, 1, 1.0),
    (values.number(0.0), 1e300, 1e300),
    (SIZE, 1024, 1024),
    (SIZE, " 1 kib ", 1024),
    (SIZE, "1025B", 1025),
    (SIZE, 2**50, 2**50),
    (SIZE, "1048576GiB", 2**50),
    (SIZE, "2KB", 2000),
    (SIZE, "1mb", 10**6),
    (SIZE, "1gb", 10**9),
    (SIZE, "1mib", 2**20),
    (SIZE, "1.5GiB", 3 * 2**29),
    (SIZE, "1tib", 2**40),
    (SIZE, "1TB", 10**12),
    (SIZE, "1e6", 10**6),
    (SIZE, "1_048_576", 2**20),
    (SECONDS, "1", 1.0),
    (SECONDS, "1s", 1.0),
    (SECONDS, " 500 ms ", 0.5),
    (SECONDS, "0.5", 0.5),
    (SECONDS, ".5s", 0.5),
    (SECONDS, "1m", 60.0),
    (SECONDS, "1e1s", 10.0),
    (values.seconds(0), "1h", 3600.0),
    (values.seconds(0), "7d", 604_800.0),
    (values.seconds(0), "1e-9s", 1e-9),
    (values.seconds(0, 9, whole=True), "3000ms", 3),
    (values.milliseconds(0), "1.5s", 1500.0),
    (values.milliseconds(0), "0.1", 0.1),
    (values.milliseconds(1, 60_000, whole=True), "1m", 60_000),
    (values.mebibytes(4, 1024), "64", 64),
    (values.mebibytes(4, 1024), "1GiB", 1024),
    (values.mebibytes(4, 1024), "4194304B", 4),
    (OPEN, "1e6", 10**6),
    (OPEN, "1_000_000", 10**6),
    (OPEN, "2.5e1", 25),
    (OPEN, 10**18 - 1, 10**18 - 1),
    (NUMBER, "1_0e-1", 1.0),
    (SIZE_OR, " Auto ", 0),
    (SIZE_OR, "0", 0),
    (SIZE_OR, 0, 0),
    (SIZE_OR, "1KiB", 1024),
    (WHOLE_OR, "AUTO ", 0),
    (WHOLE_OR, "9", 9),
    (values.switch, " ON", True),
    (values.switch, False, False),
    (values.switch, 1, True),
    (values.switch, "no", False),
    (CHOICE, " OFF ", "off"),
    (NAMES, "c, A", "a,c"),
    (NAMES, ["b", "a b"], "a,b"),
    (NAMES, ("none",), ""),
    (NAMES, "none", ""),
    (NAMES, [], ""),
    (values.names("429", "500"), [500, "429"], "429,500"),
    (values.host, " [::1] ", "::1"),
    (values.host, "0.0.0.0", "0.0.0.0"),
    (values.host, "h" * 253, "h" * 253),
    (values.host, "my_host.example", "my_host.example"),
    (values.hosts, "A.example, *.B.example", ("a.example", "*.b.example")),
    (values.hosts, "* [::1] ::1 x", ("*", "::1", "x")),
    (values.hosts, ["a b", "a"], ("a", "b")),
    (values.origins, "", ()),
    (values.origins, " * ", ("*",)),
    (values.origins, ["*", "*"], ("*",)),
    (values.origins, "HTTPS://Chat.Example:443, http://a:80 http://a", ("https://chat.example", "http://a")),
    (values.origins, ["https://a:80", "http://a:443"], ("https://a:80", "http://a:443")),
    (values.origins, "http://[0:0::1]:3000 http://127.0.0.1:1", ("http://[::1]:3000", "http://127.0.0.1:1")),
    (values.origins, "chrome-extension://abc app://obsidian.md", ("chrome-extension://abc", "app://obsidian.md")),
    (values.own_redis_url, " None ", ""),
    (values.own_redis_url, "", ""),
    (values.own_redis_url, "redis://h", "redis://h"),
    (values.redis_url, " OFF ", "off"),
    (values.redis_url, "Auto", "auto"),
    (values.redis_url, "redis://h/999999999", "redis://h/999999999"),
    (values.redis_url, "redis://h/", "redis://h/"),
    (values.redis_url, "redis://h:1", "redis://h:1"),
    (values.backend_urls, ["http://a, https://b:443", "unix:/s"], ("http://a", "https://b", "unix:///s")),
    (values.backend_urls, "unix:/" + "x" * 106, ("unix:///" + "x" * 106,)),
    (values.file, " a.pem ", "a.pem"),
    (values.file, "none", ""),
    (values.file, "", ""),
    (values.secret, " s3cret!~ ", "s3cret!~"),
    (values.secret, "none", ""),
    (values.secret, " ", ""),
    (values.networks, "10.0.0.0/8, ::1 unix", ("10.0.0.0/8", "::1/128", "unix")),
    (values.networks, ["unix", "unix 1.2.3.4"], ("unix", "1.2.3.4/32")),
    (values.namespace, "a" * 64, "a" * 64),
    (values.namespace, " A.b_c-1 ", "A.b_c-1"),
]

ADDRESS = "must be an address or a host name alone, such as 127.0.0.1, ::1 or 0.0.0.0"
HOSTS = "must be host names or addresses without ports, such as api.example.com, *.example.com or [::1], or *"
ORIGINS = "must be origins as browsers send them, scheme://host[:port], such as https://chat.example, or * alone"
REDIS_URLS = (
    "redis://host:6379/0, rediss://host:6379/0, unix:///path/to/socket, "
    "redis+sentinel://host1,host2/service/0 or redis+cluster://host1,host2"
)
DNS = "must be dns+http://NAME:PORT, or for SRV records dns+http://_SERVICE._tcp.NAME"
CERTIFICATES = "must be an SRV name with dns+https://: certificates are for names, not for addresses"
SEEDS = "must have one or more hosts with or without a port: host1:6379,host2:6379"
SERVICE = "must name the service after the Sentinels: redis+sentinel://host1,host2/service/0"
REDIS = f"must be auto, off, or a URL: {REDIS_URLS}"
ENGINE = (
    "must be an engine's http:// or https:// address, such as http://127.0.0.1:8000, or a Unix socket, "
    "such as unix:///run/vllm.sock"
)
ALONE = "must be the engine's address alone"
UNIX = "must be a Unix socket's full path, such as unix:///run/vllm.sock or http+unix://%2Frun%2Fvllm.sock"
USER = "must not hold a user or password: an engine's URL is shown in logs and metrics"
LONG = "must have a path of at most 107 bytes: the system allows no longer one"
DATABASE = "must have a database number, or nothing, after the host: redis://host:6379/0"
NETWORKS = "must be addresses or networks, such as 10.0.0.0/8 or ::1, or unix"
SIZES = "from 1KiB to 1024TiB"
BYTES = (
    f"must be a size {SIZES}, such as 65536, 64KiB or 16MiB; a number alone is bytes, "
    "KiB, MiB and GiB are powers of 1024, KB, MB and GB of 1000"
)
LASTING = "must be a duration from 0.5s to 60s, such as 500ms, 10s, 2m or 1h; a number alone is seconds"
SOME = "must be some of a, b, c, or none"
SWITCH = "must be on or off (or true/false, yes/no, 1/0)"

REFUSED: list[tuple[Reader, Any, str]] = [
    (WHOLE, 0, "must be from 1 to 9"),
    (WHOLE, "10", "must be from 1 to 9"),
    (WHOLE, True, "must be a whole number from 1 to 9"),
    (WHOLE, 1.0, 'must be a whole number from 1 to 9; in TOML without a point or an exponent: 1_000_000 or "1e6"'),
    (WHOLE, "1" * 19, "must be a whole number from 1 to 9"),
    (OPEN, -6, "must be at least -5"),
    (OPEN, "x", "must be a whole number of at least -5"),
    (NUMBER, 0.49, "must be from 0.5 to 2"),
    (NUMBER, 2.01, "must be from 0.5 to 2"),
    (NUMBER, False, "must be a number from 0.5 to 2"),
    (NUMBER, "inf", "must be a number from 0.5 to 2"),
    (values.number(0.0), -0.1, "must be at least 0"),
    (SIZE, 1023, f"must be {SIZES}"),
    (SIZE, 2**50 + 1, f"must be {SIZES}"),
    (SIZE, "1" * 19, BYTES),
    (SIZE, None, BYTES),
    (SIZE_OR, 1023, f"must be auto, or {SIZES}"),
    (SIZE_OR, "x", BYTES.replace("must be", "must be auto, or")),
    (WHOLE_OR, 10, "must be auto, or from 1 to 9"),
    *(
        (SIZE, text, BYTES)
        for text in ("512k", "64M", "1.5", "1.0001KiB", "KiB", "1_KiB", "1e9999KiB", "64 kibibytes")
    ),
    (SIZE, "65,536", BYTES + "; digits may be grouped by _, as in 1_000_000"),
    *(
        (SECONDS, text, LASTING)
        for text in ("10S", "2M", "10 sec", "1h30m", "s", "nan", "inf", "1e999s", "\u0661s")
    ),
    (SECONDS, "0.4s", "must be from 0.5s to 60s"),
    (SECONDS, "61", "must be from 0.5s to 60s"),
    (SECONDS, True, LASTING),
    (SECONDS, 10**400, LASTING),
    (values.seconds(0, 10**9), "-1s", "must be from 0 to 1,000,000,000s"),
    (
        values.seconds(0, 90, whole=True),
        "500ms",
        "must be a duration in whole seconds from 0 to 90s, such as 10s, 2m or 1h; a number alone is seconds",
    ),
    (
        values.milliseconds(0),
        "soon",
        "must be a duration of at least 0, such as 50ms, 0.5s or 1s; a number alone is milliseconds",
    ),
    (
        values.milliseconds(1, 9, whole=True),
        0.5,
        "must be a duration in whole milliseconds from 1ms to 9ms, such as 50ms, 0.5s or 1s; "
        'a number alone is milliseconds; in TOML without a point or an exponent: 1_000_000 or "1e6"',
    ),
    (
        values.mebibytes(4, 1024),
        "1KiB",
        "must be a size from 4MiB to 1GiB, such as 64MiB or 1GiB; a number alone is MiB, "
        "KiB, MiB and GiB are powers of 1024, KB, MB and GB of 1000",
    ),
    (
        values.whole(1, 10**6, example="64 or 1e6"),
        "1,000",
        "must be a whole number from 1 to 1,000,000, such as 64 or 1e6; "
        "digits may be grouped by _, as in 1_000_000",
    ),
    (values.whole(1, 10**6), "1e7", "must be from 1 to 1,000,000"),
    (values.whole(1), 10**18, "must be at most 999,999,999,999,999,999"),
    (values.whole(1), "1" * 65, "must be a whole number of at least 1"),
    (values.whole(0), "1.5", "must be a whole number of at least 0"),
    (values.number(0.01, 99999), "1e5", "must be from 0.01 to 99999"),
    (values.switch, "2", SWITCH),
    (values.switch, "", SWITCH),
    (CHOICE, "x", "must be one of on, off"),
    (CHOICE, True, "must be one of on, off"),
    (NAMES, "a d", SOME),
    (NAMES, 5, SOME),
    (NAMES, [["a"]], SOME),
    (values.host, "h" * 254, ADDRESS),
    (values.host, "-h", ADDRESS),
    (values.host, "1.2.3", ADDRESS),
    (values.host, "::g", ADDRESS),
    (values.host, "[::1", ADDRESS),
    (values.host, 5, ADDRESS),
    (values.hosts, "a.example:80x", HOSTS),
    (values.hosts, ".x", HOSTS + ": not '.x'"),
    (values.hosts, "." + "x" * 99, HOSTS + ": not '." + "x" * 63 + "'"),
    (values.hosts, "u@h", HOSTS),
    (values.hosts, ["a", 5], HOSTS),
    (values.hosts, 5, HOSTS),
    *[
        (values.origins, text, ORIGINS)
        for text in (
            *(
                "chat.example",
                "null",
                "file://",
                "https://",
                "https://a/",
                "https://a/x",
                "https://a?",
                "https://u@a",
            ),
            *("*, https://a", "https://*.a", "*.a", "https://a:0", "https://a:65536", "https://a:x", "https://.a"),
            *(
                "https://\u00fc.example",
                "https://[::g]",
                "https://::1",
                "://a",
                "1://a",
                "https://a:443 b",
                5,
                ["a", 5],
            ),
        )
    ],
    (values.redis_url, "unix:///", REDIS),
    (values.redis_url, "redis:///0", REDIS),
    (values.redis_url, "redis://h/1234567890", DATABASE),
    (values.redis_url, "redis://h:0", "must not have port 0"),
    (values.redis_url, 5, REDIS),
    (values.redis_url, "redis+ring://a", REDIS),
    (values.redis_url, "http+cluster://a", REDIS),
    (values.redis_url, "redis+cluster://", SEEDS),
    (values.redis_url, "redis+cluster://a,,b", SEEDS),
    (values.redis_url, "redis+cluster://a b", SEEDS),
    (values.redis_url, "redis+cluster://a:0", SEEDS),
    (values.redis_url, "redis+cluster://a:65536", SEEDS),
    (values.redis_url, "redis+cluster://a,A:6379", "must name each host once"),
    (values.redis_url, "redis+cluster://a/1", "must have no path: a Redis Cluster has no database but 0"),
    (values.redis_url, "redis+sentinel://a", SERVICE),
    (values.redis_url, "redis+sentinel://a/", SERVICE),
    (values.redis_url, "redis+sentinel://a/m/x", SERVICE),
    (values.own_redis_url, "auto", f"must be none, or a URL: {REDIS_URLS}"),
    (values.own_redis_url, 5, f"must be none, or a URL: {REDIS_URLS}"),
    (values.backend_urls, ["http://a", 5], "must be URLs, such as http://127.0.0.1:8000"),
    (values.backend_urls, 5, "must be URLs, such as http://127.0.0.1:8000"),
    (values.backend_urls, "", "must be URLs, such as http://127.0.0.1:8000"),  # of a variable that is not set
    (values.backend_urls, ["http://a", " ,"], "must be URLs, such as http://127.0.0.1:8000"),
    (values.backend_urls, "http://h\\x", ENGINE),
    (values.backend_urls, "http://*.h", ENGINE),
    (values.backend_urls, "http://a|b:8000", ENGINE),
    (values.backend_urls, "http://[::x]:8000", ENGINE),
    (values.backend_urls, "http://1.2.3:8000", ENGINE),
    (values.backend_urls, "dns+unix:///run/a", DNS),
    (values.backend_urls, "dns+vllm:8000", DNS),
    (values.backend_urls, "dns+http://10.0.0.1:8000", DNS),
    (values.backend_urls, "dns+http://[::1]:8000", DNS),
    (values.backend_urls, "dns+https://vllm.svc", CERTIFICATES),
    (
        values.backend_urls,
        "dns+http://_http._tcp.vllm:8000",
        "must have no port after an SRV name: the records have it",
    ),
    (
        values.backend_urls,
        "dns+http://v dns+http://v:80",
        "must name each engine once, and names dns+http://v twice",
    ),
    (values.backend_urls, "http://a http://b http://a", "must name each engine once, and names http://a twice"),
    (values.backend_urls, "http://", ENGINE),
    (values.backend_urls, "http://h?x", ENGINE + ", without ? or #"),
    (values.backend_urls, "http://h#", ENGINE + ", without ? or #"),
    (values.backend_urls, "http://h/v1/embeddings", f"{ALONE}, without /embeddings"),
    (values.backend_urls, "http://h/completions/", f"{ALONE}, without /completions"),
    (values.backend_urls, "http://@h", USER),
    (values.backend_urls, "unix:/" + "x" * 107, LONG),
    (values.backend_urls, "unix:/s#x", UNIX),
    (values.backend_urls, "unix:s", UNIX),
    (values.backend_urls, "http+unix://%2Fs\xe9", UNIX),
    (values.file, "http://x", "must be the path of a file, or none"),
    (values.file, "a\0b", "must be the path of a file, or none"),
    (values.file, None, "must be the path of a file, or none"),
    (values.secret, "a b", "must be a key of printable ASCII characters without spaces, or none"),
    (values.secret, None, "must be a key of printable ASCII characters without spaces, or none"),
    (values.networks, "10.1.2.3/8", NETWORKS + "; a network has no host bits: 10.0.0.0/8, not 10.1.2.3/8"),
    (values.networks, "x", NETWORKS),
    (values.networks, [5], NETWORKS),
    (values.networks, 5, NETWORKS),
    (values.namespace, "a" * 65, "must be 1 to 64 letters, digits, dots, dashes or underscores"),
]


@pytest.mark.parametrize(("read", "raw", "value"), READ)
def test_a_value_is_read(read: Reader, raw: Any, value: Any) -> None:
    found = read(raw)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("read", "raw", "words"), REFUSED)
def test_a_wrong_value_is_refused_in_these_words(read: Reader, raw: Any, words: str) -> None:
    with pytest.raises(ValueError, match=r"^must ") as refused:
        read(raw)
    assert str(refused.value) == words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (1024, "1KiB"),
        (1025, "1025"),
        (1536, "1536"),
        (2**20 - 1024, "1023KiB"),
        (2**20, "1MiB"),
        (2**20 + 1024, "1025KiB"),
        (2**30 - 2**20, "1023MiB"),
        (2**30, "1GiB"),
        (3 * 2**30, "3GiB"),
        (2**40 - 2**30, "1023GiB"),
        (2**50, "1024TiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert values.size_text(count) == text

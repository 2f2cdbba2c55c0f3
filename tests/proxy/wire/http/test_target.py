"""The one reading of a target: normal forms, what is sent on, and what is refused."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.http.target import ASTERISK, Malformed, Target, read_authority, read_host, read_target

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "raw",
    [
        CHAT,
        f"{CHAT}/",
        f"{CHAT}//",
        "//v1//chat///completions",
        "/v1/./chat/completions/.",
        "/v1/x/../chat/completions",
        "/../v1/chat/completions",
        "/v1/x/%2e%2E/chat/completions",
        "/v1%2Fchat%2fcompletions",
        "/%76%31/ch%61t/completions",
        "/v1/%2Fchat/completions",
        f"http://h{CHAT}",
        f"HTTPS://h:1{CHAT}/",
    ],
)
def test_one_endpoint_has_one_path_however_it_is_spelled(raw: str) -> None:
    found = read_target(raw)
    assert (found.path, found.text) == (CHAT, CHAT)


@pytest.mark.parametrize(
    ("raw", "path", "text"),
    [
        ("/", "/", "/"),
        ("/..", "/", "/"),
        ("/v1/models/a%2Fb", "/v1/models/a/b", "/v1/models/a/b"),
        ("/v1/models/%C3%B6%20x", "/v1/models/ö x", "/v1/models/%C3%B6%20x"),
        ("/a%3Fb%23c%25d?e%3Ff", "/a?b#c%d", "/a%3Fb%23c%25d?e%3Ff"),
        ("/a;b=c:d@e", "/a;b=c:d@e", "/a;b=c:d@e"),
        ("/a?", "/a", "/a"),
        ("/a??b=/../c//", "/a", "/a??b=/../c//"),
        ("/a?include[]=b|{c}^`\\", "/a", "/a?include%5B%5D=b%7C%7Bc%7D%5E%60%5C"),
        ("http://h", "/", "/"),
        ("http://h?a", "/", "/?a"),
        ("/.well-known/...", "/.well-known/...", "/.well-known/..."),
    ],
)
def test_what_is_sent_on_is_what_was_read(raw: str, path: str, text: str) -> None:
    found = read_target(raw)
    assert (found.path, found.text) == (path, text)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("/v1/load_lora_adapter#?x", "fragment"),
        (f"{CHAT}#?", "fragment"),
        ("/a?b#c", "fragment"),
        ("/a b", "' '"),
        ("/a\tb", r"\\t"),
        ("/a\x00", r"\\x00"),
        ("/a\x7f", r"\\x7f"),
        ("/\xe9", "ASCII"),
        ("/\udce9", "ASCII"),
        ("/a\\b", r"holds '\\\\"),
        ("/a[", r"holds '\['"),
        ('/a?"', "holds"),
        ("/a?<b>", "holds"),
        ("/%", "'%'"),
        ("/%4", "'%'"),
        ("/%zz", "'%'"),
        ("/a?100%", "'%'"),
        ("/%FF", "UTF-8"),
        ("/%C0%AF", "UTF-8"),
        ("/%00", "control"),
        ("/%0d%0aX:1", "control"),
        ("/%5c..", "backslash"),
        ("", "a path"),
        ("v1/models", "a path"),
        ("ftp://h/", "a path"),
        ("http:/h", "a path"),
        ("http://", "Host"),
        ("http:///a", "Host"),
        ("http://u@h/", "Host"),
        ("http://h:x/", "Host"),
        ("http://h/#", "fragment"),
    ],
)
def test_what_no_rfc_allows_is_refused_with_the_reason(raw: str, words: str) -> None:
    with pytest.raises(Malformed, match=words):
        read_target(raw)


PARTS = st.lists(st.sampled_from(["/", "..", ".", "a", "%2F", "%2e", "%41", "%C3%B6", "b", "%25", "?", "=", "~"]))


@given(PARTS.map(lambda parts: "/" + "".join(parts)))
def test_a_normal_form_is_read_as_itself_and_holds_nothing_to_resolve(raw: str) -> None:
    found = read_target(raw)
    assert read_target(found.text) == found
    assert found.path == unquote(found.text.partition("?")[0])
    assert found.path[:1] == "/"
    assert not set(found.path.split("/")[1:]) & {".", ".."}
    assert "//" not in found.path
    assert found.path == "/" or found.path[-1] != "/"
    assert re.fullmatch(r"[!-~]+", found.text) is not None


def test_the_asterisk_and_the_authority_form() -> None:
    assert read_target("*") is ASTERISK
    assert read_authority("h:443") == Target("h:443", "h:443", "h:443")
    for raw in ("h", "/v1", "h:", "u@h:1"):
        with pytest.raises(Malformed):
            read_authority(raw)


@pytest.mark.parametrize(
    ("raw", "host"),
    [
        ("h", "h"),
        ("H.Example.:80", "h.example"),
        ("h:", "h"),
        ("127.0.0.1:65535", "127.0.0.1"),
        ("h:00080", "h"),
        ("[::1]", "::1"),
        ("[0:0::1]:80", "::1"),
        ("my_service", "my_service"),
    ],
)
def test_a_host_is_its_name_without_the_port(raw: str, host: str) -> None:
    assert read_host(raw) == host


HOSTS = [
    "",
    " ",
    ".",
    "..",
    "u@h",
    "h/p",
    "a, b",
    "a,b",
    "a b",
    "a:b:c",
    "h:x",
    "h:-1",
    "h:65536",
    "h:000080",
    "h:999999",
    "::1",
]
ODD = ["[::1", "[::g]", "[1.2.3.4]", "[]", "[::1]x", "é", "h%41", "h?x", "h#x", "http://h", "h\x00", "h;x", "\\h"]


@pytest.mark.parametrize("raw", HOSTS + ODD)
def test_what_is_no_host_is_refused(raw: str) -> None:
    with pytest.raises(Malformed, match="Host"):
        read_host(raw)


def test_a_target_as_long_as_a_head_may_be_is_read_in_no_time() -> None:
    long = "/" + "a/../%2e/" * 1800
    assert read_target(long).path == "/"
    with pytest.raises(Malformed):
        read_target(long + "%a\x00"[:2] + "a%" * 4000 + "\x00")

"""URLs that name several servers, or a server by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import SettingsError
from proxy.redis.url import RedisUrl, address, read_url


def test_a_cluster_has_its_seeds_and_one_login() -> None:
    url = read_url("redis+cluster://app:p%40w@a:7000,[::1]:7001,B?client_name=gw&protocol=2")
    assert (url.kind, url.hosts, url.service) == ("cluster", (("a", 7000), ("::1", 7001), ("b", 6379)), "")
    assert url.address.login == address("redis://app:p%40w@x?client_name=gw&protocol=2").login
    assert url.options == {"username": "app", "password": "p@w", "client_name": "gw", "protocol": 2}
    assert str(url) == "redis+cluster://a:7000,[::1]:7001,b:6379"
    assert "p@w" not in repr(url)


def test_sentinels_have_a_login_of_their_own() -> None:
    url = read_url("redis+sentinel://:pw@s1,s2:5/mymaster/3?sentinel_username=u&sentinel_password=sp")
    assert (url.kind, url.hosts, url.service) == ("sentinel", (("s1", 26379), ("s2", 5)), "mymaster")
    assert (url.address.login.password, url.address.login.db) == ("pw", 3)
    assert url.sentinel_login == {"username": "u", "password": "sp"}
    assert str(url) == "redis+sentinel://s1:26379,s2:5/mymaster"
    assert "sp" not in repr(url).replace("sentinel", "")


def test_one_server_is_read_as_before() -> None:
    url = read_url("redis://h:7/3")
    assert (url.kind, url.address, str(url)) == ("server", address("redis://h:7/3"), "redis://h:7")


def test_tls_is_asked_for_by_the_scheme() -> None:
    for scheme in ("rediss+cluster://a,b", "rediss+sentinel://a,b/m"):
        url = read_url(f"{scheme}?ssl_cert_reqs=none&ssl_check_hostname=false")
        assert url.address.tls is not None
        assert url.options == {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False}
        assert str(url).startswith("rediss+")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+cluster://:secret@a,a", "must name each host once"),
        ("redis+cluster://:secret@a/3", "has none but 0"),
        ("redis+cluster://:secret@a?colour=blue", "'colour', which is unknown"),
        ("redis+sentinel://:secret@a", "must name the service"),
        ("redis+sentinel://:secret@a/m/x", "a database number"),
        ("rediss+cluster://:secret@a?ssl_ca_certs=no-such-file", "No such file"),
    ],
)
def test_what_is_wrong_is_said_without_secrets(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        read_url(url)
    assert "secret" not in str(caught.value)


@given(st.sampled_from(["redis+cluster://", "redis+sentinel://", "rediss+cluster://"]), st.text(max_size=40))
def test_whatever_the_url_it_is_read_or_refused(begin: str, text: str) -> None:
    try:
        assert isinstance(read_url(begin + text), RedisUrl)
    except SettingsError:
        pass

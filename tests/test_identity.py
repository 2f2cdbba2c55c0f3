"""From a request to its Caller: by key, or by the address that counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from proxy.access.api_keys import KeyRing, hash_of
from proxy.access.caller import Caller
from proxy.access.client_ip import TrustedProxies
from proxy.access.identity import Authenticator, tenant
from proxy.errors import Code, GatewayError


class Transport:
    """A socket's address, and nothing else of it."""

    def __init__(self, peer: object) -> None:
        self._peer = peer

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._peer if name == "peername" else default

    def is_closing(self) -> bool:
        return False


def asked(*headers: tuple[str, str], peer: object = ("9.9.9.9", 1)) -> web.BaseRequest:
    return make_mocked_request("GET", "/", headers=CIMultiDict(headers), transport=Transport(peer))


@pytest.mark.parametrize(
    ("peer", "trusted", "found"),
    [
        (("9.9.9.9", 1), ("10.0.0.0/8",), "9.9.9.9"),
        (("10.0.0.1", 1), ("10.0.0.0/8",), "2.2.2.2"),
        (("::1", 1, 0, 0), (), "::1"),
        ("", (), "unix"),
        ("", ("unix",), "2.2.2.2"),
        (None, (), "unix"),
    ],
)
def test_without_keys_a_caller_is_an_address(peer: object, trusted: Sequence[str], found: str) -> None:
    identity = Authenticator(None, TrustedProxies(trusted))
    headers = (("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "2.2.2.2"), ("Authorization", "Bearer x"))
    caller = identity.identify(asked(*headers, peer=peer))
    assert (caller.id, caller.name, caller.models) == (found, "", None)
    assert caller.tenant == tenant(asked(("Authorization", "Bearer x")))
    assert caller.tenant != tenant(asked())


def test_with_keys_a_caller_is_the_key_s_owner_whatever_the_address() -> None:
    owner = Caller(id="a", name="team-a")
    identity = Authenticator(KeyRing({hash_of("k"): owner}), TrustedProxies())
    assert identity.identify(asked(("Authorization", "Bearer k"))) is owner
    with pytest.raises(GatewayError) as e:
        identity.identify(asked(("Authorization", "Bearer K")))
    assert e.value.code is Code.INVALID_API_KEY
    assert repr(identity) == "<Identity by <KeyRing of 1>>"

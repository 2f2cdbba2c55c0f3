"""From a request to its Caller: by key, or by the address that counts."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
from multidict import CIMultiDict

from proxy.access.api_keys import KeyRing
from proxy.access.caller import Caller
from proxy.access.client_ip import TrustedProxies
from proxy.access.context import AccessContext, ClientRequest
from proxy.access.identity import MAX_KEY, Authenticator, tenant
from proxy.access.policy import scope_of
from proxy.config.keys_file import hash_of
from proxy.errors import Code, GatewayError
from tests.kit.mocked import mocked_request


class Transport:
    """A socket's address, and nothing else of it."""

    def __init__(self, peer: object) -> None:
        self._peer = peer

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._peer if name == "peername" else default

    def is_closing(self) -> bool:
        return False


def asked(*headers: tuple[str, str], peer: object = ("9.9.9.9", 1)) -> ClientRequest:
    request: ClientRequest = mocked_request("GET", "/", headers=CIMultiDict(headers), transport=Transport(peer))
    return request


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


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "api-key"])
def test_without_keys_each_credential_is_a_tenant_of_its_own(name: str) -> None:
    found = {tenant(asked(*headers)) for headers in ((), ((name, "a"),), ((name, "b"),), ((name, "a"),))}
    assert len(found) == 3
    for credential in ("a", "b"):
        context = cast("AccessContext", SimpleNamespace(caller=None, request=asked((name, credential))))
        assert scope_of(None)(context) == tenant(asked((name, credential)))


def test_with_keys_a_caller_is_the_key_s_owner_whatever_the_address() -> None:
    owner = Caller(id="a", name="team-a")
    identity = Authenticator(KeyRing({hash_of("k"): owner}), TrustedProxies())
    assert identity.identify(asked(("Authorization", "Bearer k"))) is owner
    with pytest.raises(GatewayError) as e:
        identity.identify(asked(("Authorization", "Bearer K")))
    assert e.value.code is Code.INVALID_API_KEY
    assert repr(identity) == "<Identity by <KeyRing of 1>>"


KEY = "k" * MAX_KEY
RING = KeyRing({hash_of(KEY): Caller(id="a", expires=100.0, operator=True), hash_of("long" + KEY): Caller(id="b")})


def keyed(now: float = 0.0, ring: KeyRing | None = RING) -> Authenticator:
    return Authenticator(ring, TrustedProxies(), clock=lambda: now)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ((), "You didn't provide an API key"),
        (("",), "Incorrect"),
        (("Bearer",), "Incorrect"),
        (("Bearer ",), "Incorrect"),
        ((f"Basic {KEY}",), "Incorrect"),
        ((f"Bearer {KEY}", f"Bearer {KEY}"), "Incorrect"),
        ((f"Bearer long{KEY}",), "Incorrect"),  # longer than any key that is looked at
        ((KEY,), "Incorrect"),
    ],
)
def test_no_key_and_a_wrong_one_are_told_apart(headers: tuple[str, ...], words: str) -> None:
    with pytest.raises(GatewayError, match=words) as e:
        keyed().identify(asked(*(("Authorization", value) for value in headers)))
    assert e.value.code is Code.INVALID_API_KEY


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer  {KEY} "])
def test_a_key_of_the_greatest_length_is_a_key(given: str) -> None:
    assert keyed().identify(asked(("Authorization", given))).id == "a"


@pytest.mark.parametrize(("now", "code"), [(99.9, None), (100.0, Code.KEY_EXPIRED), (101.0, Code.KEY_EXPIRED)])
def test_a_key_ends_at_its_second(now: float, code: Code | None) -> None:
    identity = keyed(now)
    caller = RING.find(KEY)
    assert caller is not None
    ended = identity.ended(caller)
    assert (ended.code if ended is not None else None) is code
    if code is None:
        assert identity.identify(asked(("Authorization", f"Bearer {KEY}"))) is caller
        return
    with pytest.raises(GatewayError) as e:
        identity.identify(asked(("Authorization", f"Bearer {KEY}")))
    assert e.value.code is code


def test_a_key_that_was_let_in_is_revoked_where_it_is_gone_or_no_operator_s_any_more() -> None:
    caller, other = RING.find(KEY), Caller(id="gone", operator=True)
    assert caller is not None
    identity = keyed()
    assert identity.ended(caller, operating=True) is None
    gone = identity.ended(other)
    assert gone is not None
    assert gone.code is Code.KEY_REVOKED
    identity.renew(KeyRing({hash_of(KEY): Caller(id="a")}))
    assert identity.ended(caller) is None
    demoted = identity.ended(caller, operating=True)
    assert demoted is not None
    assert demoted.code is Code.KEY_REVOKED
    assert keyed(ring=None).ended(other) is None

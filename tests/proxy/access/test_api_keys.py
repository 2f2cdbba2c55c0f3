"""The keys file: what it says, what is wrong with one, and whose key is whose."""

from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.api_keys import KeyRing, read_keys
from proxy.access.caller import Caller, Rates
from proxy.config.keys_file import hash_of
from proxy.errors import SettingsError

A, B = hashlib.sha256(b"key-a").hexdigest(), hashlib.sha256(b"key-b").hexdigest()
FULL = f"""
[[keys]]
name = "team-a"
sha256 = "{A}"
tenant = "blue"
models = ["m1", "m2"]
rps = 2.5
burst = 10
tokens_per_minute = 60000
streams = 4

[[keys]]
name = "team-b"
sha256 = "{B.upper()}"
"""


def test_an_entry_becomes_a_caller_with_its_limits() -> None:
    ring = read_keys(FULL, "keys.toml")
    caller = ring.find("key-a")
    assert caller is not None
    assert (caller.name, caller.models) == ("team-a", frozenset({"m1", "m2"}))
    assert caller.rates == Rates(rps=2.5, burst=10, tokens_per_minute=60000, streams=4)
    other = ring.find("key-b")
    assert other is not None
    assert (other.models, other.rates) == (None, Rates())
    assert len({caller.id, other.id, caller.tenant, other.tenant}) == 4
    assert (len(ring), ring.find("key-c")) == (2, None)


def test_a_tenant_s_name_is_not_another_key_s_own_tenant() -> None:
    ring = read_keys(FULL.replace('"blue"', f'"{B}"'), "keys.toml")
    tenants = {caller.tenant for key in ("key-a", "key-b") if (caller := ring.find(key)) is not None}
    assert len(tenants) == 2


def test_two_keys_of_one_tenant_are_two_callers_of_it() -> None:
    ring = read_keys(FULL + 'tenant = "blue"\n', "keys.toml")
    a, b = ring.find("key-a"), ring.find("key-b")
    assert a is not None
    assert b is not None
    assert a.tenant == b.tenant
    assert a.id != b.id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("x = [", "not a TOML file"),
        ("[[keys]]\nname = team-a\n", "line 2: name: text, and a number with a unit, are in quotes"),
        ("x = " + "[" * 3000, "not a TOML file"),
        ("[keys]\n", "holds no key"),
        (f'a = 1\n[[keys]]\nname = "a"\nsha256 = "{A}"', "unknown key 'a'"),
        ('\n\n[[keys]]\nname = "a"\n', "k.toml:3: sha256: must be the 64 hex digits"),
        (f'[[keys]]\nsha256 = "{A}"\n', "k.toml:1: name: must be"),
        (f'[[keys]]\nname = "a b"\nsha256 = "{A}"\n', "name: must be"),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\nmodel = "m1"\n', "unknown field 'model'; did you mean models?"),
        (
            '[[keys]]\nname = "a"\nkey = "sk-1"\n',
            "unknown field 'key'; the file holds a key's sha256 only: python -m",
        ),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\nmodels = "m1"\n', "models: must be a list"),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\nmodels = []\n', "models: must be a list"),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\nrps = 0\n', "rps: must be a number"),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\nrps = nan\n', "rps: must be a number"),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\nstreams = true\n', "streams: must be a whole number"),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\ntenant = ""\n', "tenant: must be"),
        (f'[[keys]]\nname = "a"\nsha256 = "{A}"\ntenant = "{"t" * 257}"\n', "tenant: must be"),
        (f'[[keys]]\nname = "{"n" * 65}"\nsha256 = "{A}"\n', "name: must be"),
        (FULL.replace("team-b", "team-a"), "k.toml:12: name = 'team-a': is another key's too"),
        (FULL.replace(B.upper(), A), "k.toml:12: sha256: is also that of 'team-a'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(SettingsError) as e:
        read_keys(text, "k.toml")
    assert says in str(e.value)


def test_names_of_the_greatest_length_are_taken() -> None:
    ring = read_keys(f'[[keys]]\nname = "{"n" * 64}"\nsha256 = "{A}"\ntenant = "{"t" * 256}"\n', "k.toml")
    assert len(ring) == 1


def test_every_wrong_entry_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as e:
        read_keys('[[keys]]\nname = "a"\n\n[[keys]]\nname = "b"\n', "k")
    assert [line.partition(" ")[0] for line in str(e.value).splitlines()] == ["k:1:", "k:4:"]


@given(st.sets(st.text(min_size=1), min_size=1, max_size=20), st.text())
def test_a_key_finds_its_own_caller_and_no_other_finds_one(keys: set[str], other: str) -> None:
    ring = KeyRing({hash_of(key): Caller(id=hash_of(key).hex()) for key in keys})
    for key in keys:
        caller = ring.find(key)
        assert caller is not None
        assert caller.id == hash_of(key).hex()
    assert (ring.find(other) is not None) == (other in keys)


def test_hashes_that_begin_alike_are_told_apart() -> None:
    real = hash_of("key")
    twin = real[:8] + bytes(24)
    ring = KeyRing({twin: Caller(id="twin"), real: Caller(id="real")})
    found = ring.find("key")
    assert found is not None
    assert found.id == "real"
    assert KeyRing({twin: Caller(id="twin")}).find("key") is None


@pytest.mark.parametrize(
    "written", ["2027-01-31T00:00:00Z", '"2027-01-31T00:00:00Z"', "2027-01-31T02:00:00+02:00"]
)
def test_a_key_may_end_and_may_be_an_operators(written: str) -> None:
    more = f'expires = {written}\nrole = "operator"\n'
    ring = read_keys(FULL + more, "keys.toml")
    one, other = ring.find("key-a"), ring.find("key-b")
    assert one is not None
    assert other is not None
    assert (one.expires, one.operator, ring.has_operator) == (math.inf, False, True)
    assert (other.expires, other.operator) == (1801353600.0, True)
    assert ring.expires_after(1801353599.0) == 1801353600.0
    assert ring.expires_after(1801353600.0) == math.inf
    assert not read_keys(FULL, "keys.toml").has_operator


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("expires = 2027-01-31T00:00:00", "expires: must be a time with its offset"),
        ("expires = 2027-01-31", "expires: "),
        ('expires = "soon"', "expires: "),
        ('expires = "2027-W05-1"', "expires: "),
        ("expires = 1801353600", "expires: "),
        ("expires = true", "expires: "),
        ("expires = []", "expires: "),
        ('role = "admin"', "role: must be one of user, operator"),
        ("role = 1", "role: "),
        ("role = []", "role: "),
        ("operator = true", "unknown field 'operator'"),
    ],
)
def test_an_end_or_a_role_that_is_none_is_told(line: str, says: str) -> None:
    with pytest.raises(SettingsError) as e:
        read_keys(FULL + line + "\n", "keys.toml")
    assert says in str(e.value)


def test_what_has_changed_is_told_by_names_and_not_without_end() -> None:
    before = read_keys(FULL, "k")
    after = read_keys(FULL.replace("streams = 4", "streams = 5").replace("key-b", "key-c"), "k")
    assert before.changed_from(before) == "no key"
    assert after.changed_from(before) == "changed: team-a"
    many = "".join(f'[[keys]]\nname = "n{n}"\nsha256 = "{hash_of(str(n)).hex()}"\n' for n in range(5000))
    told = read_keys(many, "k").changed_from(before)
    assert told.startswith("added: n0, n1, ")
    assert "and 4980 more; removed: team-a, team-b" in told
    assert len(told) < 300
    assert A not in told


def test_what_is_nested_without_end_is_told() -> None:
    with pytest.raises(SettingsError, match="not a TOML file"):
        read_keys("a = " + "[" * 100_000, "keys.toml")

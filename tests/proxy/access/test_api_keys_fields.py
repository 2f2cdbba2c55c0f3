"""The keys file field by field: bounds of each value, what is told of each wrong one, and what has changed."""

from __future__ import annotations

import hashlib
import math

import pytest

from proxy.access.api_keys import MOST_NAMES, KeyRing, read_keys
from proxy.access.caller import Caller
from proxy.config.keys_file import hash_of
from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.errors import SettingsError

A = hashlib.sha256(b"key-a").hexdigest()
ENTRY = f'[[keys]]\nname = "a"\nsha256 = "{A}"\n'


def caller(more: str) -> Caller:
    found = read_keys(ENTRY + more, "k").find("key-a")
    assert found is not None
    return found


def told(text: str) -> list[str]:
    with pytest.raises(SettingsError) as e:
        read_keys(text, "k")
    return str(e.value).split("\n")


@pytest.mark.parametrize(
    ("more", "priority", "top"),
    [
        ("", NORMAL, NORMAL),
        ('priority = "high"', HIGH, HIGH),
        ('priority = "low"', LOW, NORMAL),
        ('priority = "low"\ntop_priority = "low"', LOW, LOW),
        ('top_priority = "high"', NORMAL, HIGH),
        ('priority = "high"\ntop_priority = "high"', HIGH, HIGH),
    ],
)
def test_a_key_has_a_class_and_a_top(more: str, priority: int, top: int) -> None:
    found = caller(more)
    assert (found.priority, found.top_priority) == (priority, top)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('priority = "high"\ntop_priority = "normal"', "top_priority: must not be below priority"),
        ('top_priority = "low"', "top_priority: must not be below priority"),
        ('priority = "urgent"', "priority: must be one of high, normal, low"),
        ("top_priority = 1", "top_priority: must be one of high, normal, low"),
        ("burst = 0", "burst: must be a whole number from 1 to 1,000,000,000"),
        ("burst = 1.0", "burst: must be a whole number from 1 to 1,000,000,000"),
        ("tokens_per_minute = 0", "tokens_per_minute: must be a whole number from 1 to 1,000,000,000"),
        ("streams = -1", "streams: must be a whole number from 1 to 1,000,000,000"),
        ("rps = inf", "rps: must be a number of requests a second from 0.000001 to 1,000,000,000"),
        ("rps = true", "rps: must be"),
        ('rps = "1"', "rps: must be"),
        ("tenant = 5", "tenant: must be a text of 1 to 256 characters"),
        ('models = [""]', "models: must be a list of names"),
        ("models = [1]", "models: must be a list of names"),
        ("zzz = 1", "unknown field 'zzz'"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_what_can(more: str, says: str) -> None:
    (line,) = told(ENTRY + more + "\n")
    assert line.startswith(f"k:1: {says}")
    assert "did you mean" not in line


def test_the_least_values_are_values() -> None:
    found = caller(
        'burst = 1\ntokens_per_minute = 1\nstreams = 1\nrps = 0.001\ntenant = "t"\nmodels = ["m"]\nrole = "user"'
    )
    rates = found.rates
    assert (rates.burst, rates.tokens_per_minute, rates.streams, rates.rps) == (1, 1, 1, 0.001)
    assert (found.models, found.operator, found.expires) == (frozenset({"m"}), False, math.inf)
    assert found.id == A[:16]
    assert found.tenant == hashlib.sha256(b"tenant\0t").digest()
    assert caller("").tenant == hashlib.sha256(f"key\0{A}".encode()).digest()
    assert type(caller("rps = 3").rates.rps) is float


@pytest.mark.parametrize("digest", ["", A[:-1], A + "0", "g" * 64, f" {A.upper()} "])
def test_a_hash_is_64_hex_digits(digest: str) -> None:
    text = f'[[keys]]\nname = "a"\nsha256 = "{digest}"\n'
    if digest.strip().lower() == A:
        assert read_keys(text, "k").find("key-a") is not None
    else:
        assert told(text)[0].startswith("k:1: sha256: must be the 64 hex digits")


def test_entries_that_are_not_written_line_by_line_are_told_by_their_number() -> None:
    text = f'keys = [{{name = "a", sha256 = "{A}"}}, {{name = "b"}}, {{name = "a", sha256 = "{"0" * 64}"}}]'
    assert told(text) == [
        "k: entry 2: sha256: must be the 64 hex digits of a key's SHA-256 (python -m proxy.keys new NAME)",
        "k: entry 3: name = 'a': is another key's too",
    ]
    assert told("keys = [1]") == ["k: holds no key: each is a [[keys]] entry"]
    assert told("x = 1") == [
        "k: unknown key 'x': only [[keys]] entries",
        "k: holds no key: each is a [[keys]] entry",
    ]


def test_an_entry_that_is_wrong_keeps_no_name_and_no_hash() -> None:
    text = f'[[keys]]\nname = "a"\nsha256 = "{A}"\nrps = 0\n[[keys]]\nname = "a"\nsha256 = "{A}"\n'
    assert told(text) == ["k:1: rps: must be a number of requests a second from 0.000001 to 1,000,000,000"]


@pytest.mark.parametrize(
    ("when", "ends"), [("9999-12-31T23:59:59+00:00", 253402300799.0), ("1970-01-01T00:00:00Z", 0.0)]
)
def test_a_time_of_any_year_is_one(when: str, ends: float) -> None:
    assert caller(f'expires = "{when}"').expires == ends


def ring(*names: str, **more: Caller) -> KeyRing:
    callers = [Caller(id=name, name=name, tenant=name.encode()) for name in names] + list(more.values())
    return KeyRing({hash_of(each.id): each for each in callers})


def test_what_has_changed_is_told_up_to_so_many_names() -> None:
    names = [f"n{n}" for n in range(MOST_NAMES + 1)]
    assert ring(*names[:-1]).changed_from(ring()) == "added: " + ", ".join(names[:-1])
    assert ring(*names).changed_from(ring()) == "added: " + ", ".join(names[:-1]) + " and 1 more"
    changed = Caller(id="a", name="A")
    assert ring("b", a=changed).changed_from(ring("a", "c")) == "added: b; removed: c; changed: A"
    assert ring("a").changed_from(ring("a")) == "no key"


def test_a_ring_knows_ids_tenants_and_when_the_next_key_ends() -> None:
    known = ring("a", b=Caller(id="b", name="B", expires=5.0), c=Caller(id="c", name="C", expires=7.0))
    assert (known.get("b") or Caller(id="")).name == "B"
    assert known.get("x") is None
    assert (known.name_of(b"a"), known.name_of(b"x")) == ("a", "a key that was removed")
    assert [known.expires_after(now) for now in (0.0, 4.9, 5.0, 6.9, 7.0)] == [5.0, 5.0, 7.0, 7.0, math.inf]
    assert (len(known), repr(known), known.has_operator) == (3, "<KeyRing of 3>", False)
    assert ring("a", b=Caller(id="b", operator=True)).has_operator

"""Owns the targets of operators' files: keys, deny lists, settings; and of the form in which texts are compared.
Must not know paths or when files are read.
Called by the tests and by the driver."""

from __future__ import annotations

import hashlib
import re
import tomllib
from typing import Any, Final

from proxy.access.api_keys import read_keys
from proxy.access.denylist.normalize import _UNSEEN, StreamNormalizer, normalize
from proxy.access.denylist.rules import DenyList, read_deny_list
from proxy.access.denylist.scanner import Scanner
from proxy.config.loader import load
from proxy.config.settings import Settings, options
from proxy.errors import SettingsError
from tests.fuzz.kit import Target, parted

NAME: Final = "file.x"
KEY: Final = "sk-known"
HASH: Final = hashlib.sha256(KEY.encode()).hexdigest()
OPTIONS: Final = {option.name: option for option in options()}
SECRET: Final = "hunter2hunter2"


def _said(error: SettingsError) -> str:
    said = str(error)
    assert said
    assert all(NAME in line for line in said.splitlines() if line.strip()), said
    return said


def keys(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        ring = read_keys(text, NAME)
    except SettingsError as e:
        assert NAME in str(e)
        return
    table = tomllib.loads(text)
    assert table.keys() == {"keys"}
    assert len(ring) == len(table["keys"]) > 0
    known = [entry for entry in table["keys"] if entry["sha256"].strip().lower() == HASH]
    assert len(known) <= 1
    caller = ring.find(KEY)
    assert (caller and caller.name) == (known[0]["name"] if known else None)
    assert ring.find("sk-other") is None
    if caller is not None:
        models = known[0].get("models")
        assert caller.models == (None if models is None else frozenset(models))
        assert caller.top_priority <= caller.priority
        assert caller.rates.rps == known[0].get("rps")


def deny(data: bytes) -> None:
    """Every text of the list is found in its own words, and in a text that comes in pieces as in the whole."""
    first, _, second = data.partition(b"\0")
    text = first.decode("utf-8", "replace")
    try:
        rules = read_deny_list(text, NAME)
    except SettingsError as e:
        _said(e)
        return
    literals = 0
    for line in text.splitlines():
        rule = line.strip()
        if not rule or rule.startswith(("#", "re:")):
            continue
        rule = rule.removeprefix("text:")
        literals += 1
        found = rules.find(f"so {rule} it is")
        assert found is not None, rule
        assert rules.find(f"{rule} at first") is not None
    pieces, stream = parted(second)
    if not rules.patterns:
        _scanned(rules, stream.decode("utf-8", "replace"), len(pieces))


def _scanned(rules: DenyList, text: str, count: int) -> None:
    step = max(1, len(text) // max(1, count))
    scanner = Scanner(rules, 16)
    safe = 0
    for at in range(0, len(text), step):
        scanner.feed(text[at : at + step])
        assert safe <= scanner.safe <= scanner.read
        safe = scanner.safe
    scanner.end()
    assert (scanner.hit is None) == (rules.find(text) is None)


# Marks, vowels and finals of Hangul, and the halfwidth ones: what may combine with what is before.
_MARKS: Final = re.compile(r"(?:[^\w\s\x00-\x7f]|[\u1160-\u11ff\uff9e\uff9f\U00016d40-\U00016d7f]){48,}")


def texts(data: bytes) -> None:
    """A text in pieces has the form of the whole."""
    pieces, stream = parted(data)
    text = stream.decode("utf-8", "replace")
    if _MARKS.search(text.translate(_UNSEEN)):
        return  # no text has so many in a row: they are taken in pieces, wherever those fall
    step = max(1, len(text) // max(1, len(pieces)))
    former = StreamNormalizer()
    formed = "".join(former.feed(text[at : at + step]) for at in range(0, len(text), step)) + former.end()
    assert formed == normalize(text)


def _loaded(text: str) -> Settings:
    return load(["--config", NAME], {}, lambda path: text)


def settings(data: bytes) -> None:
    """All problems are named, or each value is the one that the environment would give."""
    text = data.decode("utf-8", "replace")
    try:
        found = _loaded(text)
    except SettingsError as e:
        said = _said(e)
        if text.count(SECRET) == 1 and f'backend_api_key = "{SECRET}' in text:
            assert SECRET not in said
        return
    table: dict[str, Any] = tomllib.loads(text)
    assert table.keys() <= OPTIONS.keys()
    for name, value in table.items():
        if type(value) in (int, str) and value != "" and not OPTIONS[name].is_switch:
            environ = {OPTIONS[name].env[0]: str(value)}
            assert getattr(load([], environ), name) == getattr(found, name), name


KEY_WORDS: Final = (
    *(b"[[keys]]\n", b'sha256 = "', HASH.encode(), b'name = "', b"models = [", b"rps = ", b"burst = "),
    *(b'priority = "low"\n', b'top_priority = "high"\n', b'tenant = "', b"tokens_per_minute = ", b"inf", b"nan"),
    *(b"streams = ", b"= true\n", b'"\n', b"'''", b"[keys]\n", b"keys = [", b"{", b"}", b"[", b"]", b"1979-05-27"),
)
DENY_WORDS: Final = (
    *(
        b"\n",
        b"re:",
        b"text:",
        b"# ",
        b"\0",
        b"(?i)",
        b"\\w+",
        b"{1,1000}",
        b"(a|b)*",
        b"\xc2\xad",
        b"\xe2\x80\x8b",
    ),
    *(
        b"\xef\xb7\xba",
        b"\xcc\x81",
        b"\xe1\x84\x80",
        b"\xe1\x85\xa1",
        b"\xef\xac\x81",
        b"\xc3\x9f",
        b"\xc4\xb0",
        b" ",
    ),
    *(b"\xef\xbd\xb6\xef\xbe\x9e", b"\xf3\xa0\x84\x80", b"\xe2\x80\xa8", b"\xcd\x85", b"\r", b"\x1c"),
    *(b"\xc2\x85", b"\xc4\xb0", b" ", b"\xe2\x80\x8b"),
)
SETTING_WORDS: Final = (
    *(f"{name} = ".encode() for name in OPTIONS),
    *(b"true\n", b"1\n", b'"off"\n', b'"auto"\n', b"0.5\n", b"-1\n", b"inf\n", b"nan\n", b'["http://h:1"]\n'),
    *(b'"16MiB"\n', b'"1e3"\n', b'"redis://u:p@h:1/0"\n', b"[x]\n", b"[[", b"]]", b"'", b'"""', SECRET.encode()),
)
TARGETS: Final = {
    "keys": Target(keys, "each fault names its file; the ring is the table as tomllib reads it", KEY_WORDS),
    "deny": Target(deny, "each text is found in its own words; a text in pieces as the whole", DENY_WORDS),
    "texts": Target(texts, "a text in pieces has the form of the whole", DENY_WORDS, 1000),
    "settings": Target(settings, "each fault named; a value is what the environment would give", SETTING_WORDS),
}

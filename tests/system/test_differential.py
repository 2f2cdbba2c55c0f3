"""Three readers of one request agree about whatever the gateway accepts: a short seeded run of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.wire.http.target import Target
from tests import differential as differ
from tests.differential import CORPUS, Differential, hostname, resolved, split


@pytest.fixture
def differential() -> Iterator[Differential]:
    made = Differential()
    yield made
    made.close()


def test_aiohttp_the_gateway_and_httptools_agree(differential: Differential) -> None:
    differential.run(20_000, seed=20261129)
    assert differential.wrong == []
    assert differential.counts["accepted"] > 2000
    assert differential.counts["refused by the gateway"] > 500


def test_what_is_mutated_is_accepted_before(differential: Differential) -> None:
    for data in CORPUS:
        differential.compare(data)
    assert differential.wrong == []
    assert differential.counts["accepted"] == len(CORPUS)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda message: (Target("/v1/models", "/v1/models#x"), "localhost"), "a fragment sent"),
        (lambda message: (Target("/v1/model", "/v1/model"), "localhost"), "path"),
        (lambda message: (Target("/v1/models", "/v1/models?a=b"), "localhost"), "query sent"),
        (lambda message: (Target("/v1/models", "/v1/models"), "other"), "host"),
    ],
)
def test_another_reading_is_noticed(
    differential: Differential, monkeypatch: pytest.MonkeyPatch, read: object, words: str
) -> None:
    monkeypatch.setattr(differ, "read_head", read)
    differential.compare(CORPUS[0])
    assert any(found.startswith(words) for _, found in differential.wrong)


def test_the_oracle_reads_as_the_rfc_does() -> None:
    assert resolved(b"/a/b/../%2e/c//d/") == "/a/c/d"
    assert split(b"http://h?x=/y") == (b"/", b"x=/y")
    assert (hostname(b"[::1]:80"), hostname(b"A.b.:1")) == ("::1", "a.b")

"""What each file's content goes into, without a gateway: which files there are, what is loaded, what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.access.api_keys import read_keys
from proxy.access.client_ip import TrustedProxies
from proxy.access.identity import Authenticator
from proxy.access.rules import AccessRules
from proxy.config.settings import Settings
from proxy.errors import SettingsError
from proxy.resources import FileReloads, Prepared, paths_of
from tests.kit.certificates import Authority
from tests.proxy.access.test_policy import entry

NAMES = ("api_keys_file", "deny_file", "tls_cert", "tls_key", "backend_ca", "backend_cert", "backend_key")


class Bench:
    """Everything that a reload may change, and what was told."""

    def __init__(
        self, settings: Settings, *, access_policy: bool = True, tls: bool = True, reload: bool = False
    ) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.live = Prepared(AccessRules(Authenticator(None, TrustedProxies(()))))
        if tls:
            self.live.tls = cast(Any, SimpleNamespace(renew=lambda context: self.told.append(("tls", context))))
        keyed = SimpleNamespace(end=lambda: self.told.append(("keyed",)))
        link = SimpleNamespace(renew=lambda where: self.told.append(("redis", where)))
        self.reloads = FileReloads(
            settings=settings,
            live=self.live,
            fleet=cast(Any, SimpleNamespace(renew=lambda **new: self.told.append(("fleet", *new)))),
            access_policy=cast(Any, SimpleNamespace(keyed=keyed)) if access_policy else None,
            large=cast(Any, SimpleNamespace(renew=lambda: self.told.append(("large",)))),
            certificates=cast(Any, SimpleNamespace(renew=lambda *facts: self.told.append(("expires", facts[0])))),
            redis=[(settings.redis, cast(Any, link)), (settings.redis, cast(Any, link))],
            reload=cast(Any, SimpleNamespace(load=lambda: lambda: "engines")) if reload else None,
            hide=lambda secrets: self.told.append(("hide", secrets)),
        )

    def of(self, name: str) -> Callable[[], str]:
        (watched,) = [each for each in self.reloads.watched() if each.name == name]
        return watched.load()


def test_every_file_that_is_named_is_watched_by_its_setting() -> None:
    assert Bench(Settings()).reloads.watched() == []
    files: dict[str, Any] = dict.fromkeys(NAMES, "f")
    settings = Settings(
        **files, backend_api_key_file="k", cache_salt_file="s", config="c", redis="rediss://h/0?ssl_ca_certs=r"
    )
    watched = {each.name: tuple(each.paths) for each in Bench(settings, reload=True).reloads.watched()}
    assert watched == {
        "api_keys_file": ("f",),
        "deny_file": ("f",),
        "tls_cert": ("f", "f"),
        "backend_cert": ("f", "f", "f"),
        "backend_api_key_file": ("k",),
        "cache_salt_file": ("s",),
        "redis": ("r",),
        "config": ("c",),
    }
    assert paths_of(settings) == ["c", *["f"] * 7, "k", "s", "r"]
    assert "config" not in {each.name for each in Bench(settings).reloads.watched()}
    trusted = Bench(Settings(backend_ca="ca")).reloads.watched()
    assert [(each.name, tuple(each.paths)) for each in trusted] == [("backend_ca", ("ca",))]


def test_keys_are_in_force_once_they_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(entry("ka", "team-a"))
    for access_policy in (True, False):
        bench = Bench(Settings(api_keys_file=str(path)), access_policy=access_policy)
        take = bench.of("api_keys_file")
        assert [bench.live.rules.identity.ring] == [None]  # loaded, and not in force yet
        assert take() == ""
        ring = bench.live.rules.identity.ring
        assert ring is not None
        assert ring.find("ka") is not None
        assert bench.told == [("keyed",)] * access_policy
    bench.live.rules.identity.renew(read_keys(entry("kb", "team-b"), "x"))
    assert bench.of("api_keys_file")() == "added: team-a; removed: team-b"


def test_a_deny_list_is_told_to_whoever_reads_with_it(tmp_path: Path) -> None:
    path = tmp_path / "deny"
    path.write_text("one\ntwo\n")
    bench = Bench(Settings(deny_file=str(path)))
    take = bench.of("deny_file")
    assert [bench.live.rules.deny] == [None]
    assert take() == "2 rules"
    assert bench.live.rules.deny is not None
    assert bench.told == [("large",)]


def test_certificates_are_in_force_and_looked_after(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("localhost")
    cert, key = str(issued.cert), str(issued.key)
    for tls in (True, False):
        bench = Bench(Settings(tls_cert=cert, tls_key=key), tls=tls)
        assert bench.of("tls_cert")() == "its certificate"
        assert [what for what, *_ in bench.told] == ["tls"] * tls + ["expires"]
    bench = Bench(Settings(backend_ca=cert, backend_cert=cert, backend_key=key))
    assert bench.of("backend_cert")() == "its certificate"
    assert bench.told == [("fleet", "tls"), ("expires", "backend_cert")]
    bench = Bench(Settings(backend_ca=cert))
    assert bench.of("backend_ca")() == "trusted certificates"
    assert bench.told == [("fleet", "tls")]
    bench = Bench(Settings(redis=f"rediss://h/0?ssl_ca_certs={cert}"))
    assert bench.of("redis")() == "trusted certificates"
    assert [what for what, _ in bench.told] == ["redis", "redis"]
    bench = Bench(Settings(redis=f"rediss://h/0?ssl_certfile={cert}&ssl_keyfile={key}"))
    assert bench.of("redis")() == "its certificate"
    assert [what for what, _ in bench.told] == ["redis", "redis", "expires"]


def test_the_engines_key_is_hidden_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("k3y\n")
    bench = Bench(Settings(backend_api_key_file=str(path)))
    take = bench.of("backend_api_key_file")
    assert bench.told == []
    assert take() == "the API key of engines"
    assert bench.told == [("hide", ["k3y"]), ("fleet", "api_key")]
    path.write_text("")
    with pytest.raises(SettingsError, match="holds no key"):
        bench.of("backend_api_key_file")
    assert Bench(Settings(config="c"), reload=True).of("config")() == "engines"

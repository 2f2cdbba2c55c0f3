"""The gate by itself: who is let in where, which models and paths, whose answers; and the calls of ended keys."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from multidict import CIMultiDict

from proxy.access.api_keys import KeyRing
from proxy.access.caller import Caller
from proxy.access.client_ip import TrustedProxies
from proxy.access.denylist.rules import read_deny_list
from proxy.access.identity import Authenticator, tenant
from proxy.access.intake import Found, Refusal
from proxy.access.policy import OPERATING, AccessPolicy, access_policy_for, not_found, scope_of, sizes_of
from proxy.access.revocation import AT_ONCE, KeyedCalls
from proxy.access.rules import AccessRules
from proxy.config.keys_file import hash_of
from proxy.config.loader import load
from proxy.config.settings import Settings
from proxy.errors import Code, GatewayError
from proxy.server.context import RequestContext
from proxy.telemetry.audit import Audit
from proxy.telemetry.log import Log
from proxy.telemetry.metrics import Metrics
from proxy.wire.http.media_type import Media
from proxy.wire.openai import decode
from proxy.wire.raw_body import NONE, read_passed
from tests.kit.clock import virtual
from tests.kit.mocked import mocked_request
from tests.kit.running import lines
from tests.proxy.telemetry.test_metrics import samples

USER = Caller(id="u", name="user", tenant=b"one", models=frozenset({"m1"}))
OPERATOR = Caller(id="o", name="ops", tenant=b"two", operator=True)
RING = KeyRing({hash_of("user"): USER, hash_of("ops"): OPERATOR})
DENY = read_deny_list("bad\n", "d")


class Desk:
    def __init__(self, folder: Path, *flags: str, ring: KeyRing | None = RING, deny: Any = None) -> None:
        self._path = folder / "log"
        self.log = Log(os.open(self._path, os.O_WRONLY | os.O_CREAT))
        self.metrics = Metrics()
        self.settings: Settings = load(list(flags), {})
        self.rules = AccessRules(Authenticator(ring, TrustedProxies()), deny)
        audit = Audit(self.log, self.metrics)
        self.access_policy = AccessPolicy(
            self.settings, self.rules, sizes_of(self.settings), self.metrics, self.log, audit
        )
        self.made = access_policy_for(self.settings, self.rules, self.metrics, self.log, audit)

    def lines(self) -> list[dict[str, Any]]:
        self.log.close(30)
        return lines(self._path)


def call(
    endpoint: str = "chat",
    key: str | None = None,
    *,
    caller: Caller | None = None,
    model: str | None = "m1",
    method: str = "POST",
    path: str = "/v1/x",
) -> RequestContext:
    headers = CIMultiDict({} if key is None else {"authorization": f"Bearer {key}"})
    request = mocked_request(method, path, headers=headers)
    return RequestContext(cast(Any, request), "id", endpoint=endpoint, caller=caller, model=model)


def code_of(act: Any) -> Code | None:
    try:
        act()
    except GatewayError as e:
        return e.code
    return None


@pytest.mark.parametrize(
    ("endpoint", "key", "code", "caller"),
    [
        ("health", None, None, None),
        ("ready", None, None, None),
        ("metrics", None, Code.INVALID_API_KEY, None),
        ("page", None, None, None),
        ("page", "user", Code.NOT_FOUND, USER),
        ("page", "ops", None, OPERATOR),
        ("chat", None, Code.INVALID_API_KEY, None),
        ("chat", "other", Code.INVALID_API_KEY, None),
        ("chat", "user", None, USER),
        ("state", "user", Code.NOT_FOUND, USER),
        ("state", "ops", None, OPERATOR),
        ("cache", None, Code.INVALID_API_KEY, None),
    ],
)
def test_who_is_let_in_where(
    tmp_path: Path, endpoint: str, key: str | None, code: Code | None, caller: Caller | None
) -> None:
    desk = Desk(tmp_path)
    asked = call(endpoint, key)
    assert code_of(lambda: desk.access_policy.authenticate(asked)) is code
    assert asked.caller is caller
    assert len(desk.access_policy.keyed) == (code is None and caller is not None)
    reason = {Code.INVALID_API_KEY: "unknown" if key else "missing", Code.NOT_FOUND: "not_operator", None: ""}[
        code
    ]
    assert [line["reason"] for line in desk.lines()] == ([reason] if reason else [])
    if reason:
        assert samples(desk.metrics)[f'gateway_keys_refused_total{{reason="{reason}"}}'] == 1


def test_metrics_may_be_open_and_without_keys_nobody_is_asked(tmp_path: Path) -> None:
    assert code_of(lambda: Desk(tmp_path, "--no-metrics-key").access_policy.authenticate(call("metrics"))) is None
    open_ = Desk(tmp_path, ring=None)
    open_.access_policy.authenticate(asked := call("state"))
    assert asked.caller is None


def test_an_expired_key_is_told_as_such(tmp_path: Path) -> None:
    desk = Desk(tmp_path, ring=KeyRing({hash_of("old"): Caller(id="x", name="x", expires=1.0)}))
    assert code_of(lambda: desk.access_policy.authenticate(call(key="old"))) is Code.KEY_EXPIRED
    assert [line["reason"] for line in desk.lines()] == ["expired"]


def chat(text: str = "fine") -> Any:
    return decode("chat", b'{"messages":[{"role":"user","content":"%b"}]}' % text.encode())


@pytest.mark.parametrize(
    ("caller", "model", "code"),
    [
        (None, None, None),
        (None, "m9", None),
        (USER, "m1", None),
        (USER, "m9", Code.MODEL_NOT_FOUND),
        (USER, None, Code.MISSING_FIELD),
        (OPERATOR, "m9", None),
    ],
)
def test_a_key_names_its_models_alone(
    tmp_path: Path, caller: Caller | None, model: str | None, code: Code
) -> None:
    access_policy = Desk(tmp_path).access_policy
    asked = call(caller=caller, model=model)
    assert code_of(lambda: access_policy.check(asked, chat())) is code
    assert code_of(lambda: access_policy.check_raw(asked, NONE)) is code
    assert code_of(lambda: access_policy.check_found(asked, Found())) is code
    assert code_of(lambda: access_policy.check_found(asked, Found(model=model), raw=True)) is code
    reads = call(caller=caller, model=model, method="GET")
    assert code_of(lambda: access_policy.check_raw(reads, NONE)) is None
    models = [{"id": "m1"}, {"id": "m9"}, {}]
    assert access_policy.visible_models(asked, models) == ([models[0]] if caller is USER else models)


def test_a_long_model_and_a_long_path_are_told_by_their_beginning(tmp_path: Path) -> None:
    with pytest.raises(GatewayError) as e:
        Desk(tmp_path).access_policy.check(call(caller=USER, model="m" * 300), chat())
    assert e.value.message == f"The model {'m' * 200!r} does not exist or you do not have access to it."
    assert not_found("/" * 300).message == f"The path {'/' * 200!r} does not exist. The API is under /v1."


def test_a_denied_prompt_is_told_by_its_rule_alone(tmp_path: Path) -> None:
    desk = Desk(tmp_path, deny=DENY)
    asked = call()
    assert code_of(lambda: desk.access_policy.check(asked, chat("so bad"))) is Code.CONTENT_DENIED
    ask = chat()
    assert desk.access_policy.check(asked, ask) is ask
    bad, fine = (read_passed(Media("json"), b'{"input":"%b"}' % text) for text in (b"bad", b"fine"))
    assert code_of(lambda: desk.access_policy.check_raw(asked, bad)) is Code.CONTENT_DENIED
    assert desk.access_policy.check_raw(asked, fine) is fine
    assert desk.access_policy.check_raw(asked, NONE) is NONE
    unread = read_passed(Media("other"), b"x")
    assert code_of(lambda: desk.access_policy.check_raw(asked, unread)) is Code.UNSUPPORTED_MEDIA_TYPE
    assert code_of(lambda: desk.access_policy.check_found(asked, Found(denied=1))) is Code.CONTENT_DENIED
    assert [(line["msg"], line["where"], line["rule"]) for line in desk.lines()] == [
        ("content denied", "prompt", 1)
    ] * 3
    assert samples(desk.metrics)['gateway_content_denied_total{where="prompt"}'] == 3


@pytest.mark.parametrize("raw", [False, True])
def test_a_refusal_that_was_found_elsewhere_is_the_gate_s(tmp_path: Path, raw: bool) -> None:
    access_policy = Desk(tmp_path).access_policy
    refusal = Refusal(Code.INVALID_JSON.name, "no")
    unnamed, named = Found(refusal=refusal), Found(model="m9", refusal=refusal)
    assert code_of(lambda: access_policy.check_found(call(), unnamed, raw=raw)) is Code.INVALID_JSON
    stranger = call(caller=USER, model="m9")
    assert code_of(lambda: access_policy.check_found(stranger, named, raw=raw)) is Code.MODEL_NOT_FOUND
    # What could not be read names no model: that is told first where a body passes through.
    first = Code.INVALID_JSON if raw else Code.MODEL_NOT_FOUND
    assert code_of(lambda: access_policy.check_found(stranger, unnamed, raw=raw)) is first


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/v1/responses", "POST", Code.NOT_FOUND),
        ("/v1/responses", "GET", None),
        ("/v1/responses", "HEAD", None),
        ("/tokenize", "POST", None),
        ("/detokenize", "POST", Code.NOT_FOUND),
    ],
)
def test_what_cannot_be_checked_is_not_there_where_answers_are(
    tmp_path: Path, path: str, method: str, code: Code | None
) -> None:
    asked = call(path=path, method=method)
    checked = Desk(tmp_path, "--deny-answers", "--deny-file", "x", deny=DENY).access_policy
    assert code_of(lambda: checked.check_raw(asked, NONE)) is code
    assert code_of(lambda: checked.check_found(asked, Found(model="m"), raw=True)) is code
    assert code_of(lambda: Desk(tmp_path, deny=DENY).access_policy.check_raw(asked, NONE)) is None


def test_sizes_hold_at_the_gate(tmp_path: Path) -> None:
    access_policy = Desk(tmp_path, "--max-tokens-cap", "5").access_policy
    assert b'"max_tokens":5' in access_policy.check(call(), chat()).body
    passed = read_passed(Media("json"), b'{"input":"a"}')
    assert access_policy.check_raw(call(path="/v1/responses"), passed).members["max_output_tokens"] == 5
    ask = chat()
    assert Desk(tmp_path).access_policy.check(call(), ask) is ask


def scopes(desk: Desk, *calls: RequestContext) -> Sequence[bytes]:
    return [desk.access_policy.share_scope(each) for each in calls]


def test_whose_answers_are_whose(tmp_path: Path) -> None:
    known, other, stranger, credential = call(caller=USER), call(caller=OPERATOR), call(), call(key="a")
    plain = Desk(tmp_path)
    found = scopes(plain, known, other, credential)
    assert len(set(found)) == 3
    assert plain.access_policy.share_scope(stranger) == b""
    assert all(len(each) == 32 for each in found)
    everyone = Desk(tmp_path, "--share-scope", "global")
    assert scopes(everyone, known, other, stranger, credential) == [b""] * 4
    forwards = Desk(tmp_path, "--share-scope", "global", "--forward-authorization")
    one, two = scopes(forwards, known, credential)
    assert one != two
    assert forwards.access_policy.share_scope(call(key="a", caller=USER)) == two
    assert scope_of(None)(credential) == tenant(credential.request)
    assert scope_of(plain.access_policy)(known) == found[0]


def test_under_another_list_answers_are_another_s(tmp_path: Path) -> None:
    flags = ("--deny-answers", "--deny-file", "x")
    first, second = (Desk(tmp_path, *flags, deny=read_deny_list(text, "d")) for text in ("a", "b"))
    assert (
        len({desk.access_policy.share_scope(call(caller=USER)) for desk in (first, second, Desk(tmp_path))}) == 3
    )
    unchecked = (
        Desk(tmp_path, deny=read_deny_list(text, "d")).access_policy.share_scope(call(caller=USER))
        for text in ("a", "b")
    )
    assert len({*unchecked, Desk(tmp_path).access_policy.share_scope(call(caller=USER))}) == 1


@pytest.mark.parametrize(
    ("flags", "ring", "deny", "made"),
    [
        ((), None, None, False),
        ((), RING, None, True),
        ((), None, DENY, True),
        (("--share-scope", "global"), None, None, True),
        (("--forward-authorization",), None, None, True),
        (("--max-n", "3"), None, None, True),
    ],
)
def test_there_is_a_gate_only_where_there_is_something_to_ask(
    tmp_path: Path, flags: Sequence[str], ring: KeyRing | None, deny: Any, made: bool
) -> None:
    assert (Desk(tmp_path, *flags, ring=ring, deny=deny).made is not None) is made


# Keys that end


class Cuttable(RequestContext):
    """A call that notes why it was cut."""

    def cut(self, error: GatewayError) -> bool:
        self.ending = error
        return True


def under_way(caller: Caller | None, endpoint: str = "chat") -> Cuttable:
    return Cuttable(cast(Any, mocked_request("POST", "/")), "id", endpoint=endpoint, caller=caller)


class Keyed:
    def __init__(self, folder: Path, *callers: Caller) -> None:
        self.now = 0.0
        self._path = folder / "log"
        self._log = Log(os.open(self._path, os.O_WRONLY | os.O_CREAT))
        ring = KeyRing({hash_of(caller.id): caller for caller in callers})
        self.identity = Authenticator(ring, TrustedProxies(), clock=lambda: self.now)
        self.calls = KeyedCalls(self.identity, Audit(self._log, Metrics()), OPERATING, clock=lambda: self.now)

    def lines(self) -> list[tuple[str, str, str]]:
        self._log.close(30)
        return [(line["who"], line["what"], line["reason"]) for line in lines(self._path)]


@virtual
async def test_a_key_that_expires_ends_its_requests_at_its_second_and_no_others(tmp_path: Path) -> None:
    early, late = Caller(id="a", name="early", expires=10.0), Caller(id="b", name="late", expires=20.0)
    desk = Keyed(tmp_path, early, late)
    calls = [under_way(early), under_way(late), under_way(None), under_way(early)]
    for each in calls:
        desk.calls.add(each)
    assert (len(desk.calls), calls[0].forget is not None) == (4, True)
    for now, ended in ((0.0, []), (9.9, []), (10.0, [0, 3]), (19.9, [0, 3]), (20.0, [0, 1, 3]), (99.0, [0, 1, 3])):
        desk.now = now
        desk.calls.look()
        assert [at for at, each in enumerate(calls) if each.ending is not None] == ended
    assert calls[1].ending is not None
    assert calls[1].ending.code is Code.KEY_EXPIRED
    assert desk.lines()[:2] == [("early", "2 requests", "key_expired"), ("late", "1 requests", "key_expired")]


@virtual
async def test_an_operator_who_is_none_any_more_is_ended_where_one_is_needed(tmp_path: Path) -> None:
    was = Caller(id="a", name="ops", operator=True)
    desk = Keyed(tmp_path, Caller(id="a", name="ops"))
    calls = {endpoint: under_way(was, endpoint) for endpoint in (*OPERATING, "chat")}
    for each in calls.values():
        desk.calls.add(each)
    desk.calls.end()
    assert {endpoint for endpoint, each in calls.items() if each.ending is not None} == OPERATING
    assert desk.lines() == [("ops", f"{len(OPERATING)} requests", "key_revoked")]


@virtual
async def test_so_many_requests_are_ended_in_one_turn(tmp_path: Path) -> None:
    gone = Caller(id="gone", name="gone")
    desk = Keyed(tmp_path)
    calls = [under_way(gone) for _ in range(2 * AT_ONCE + 1)]
    for each in calls:
        desk.calls.add(each)

    def ended() -> int:
        return sum(each.ending is not None for each in calls)

    desk.calls.end()
    desk.calls.end()  # what is being ended is not told again, and no other turn is begun
    assert ended() == AT_ONCE
    desk.calls._calls.discard(next(iter(desk.calls._ending)))  # one of the next turn has ended by itself
    await asyncio.sleep(0)
    assert ended() == 2 * AT_ONCE - 1
    await asyncio.sleep(0)
    assert ended() == 2 * AT_ONCE
    assert desk.lines() == [("gone", f"{len(calls)} requests", "key_revoked")]


@virtual
async def test_without_a_ring_no_key_ends(tmp_path: Path) -> None:
    desk = Keyed(tmp_path)
    desk.identity.ring = None
    known = under_way(Caller(id="a", name="a"))
    desk.calls.add(known)
    desk.calls.end()
    desk.now = 1e12
    desk.calls.look()
    assert known.ending is None

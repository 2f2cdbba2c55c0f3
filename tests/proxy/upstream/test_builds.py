"""A stored answer is of the build and weights that made it: read by gateways whose engines have it, told by an
engine's version and where its models are from, and never by what is new in each of its answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.builds import MAX_STARTS, VERSION_SECONDS, Build, digests_of, in_common, version_in, version_of
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.http.pool import Pool
from tests.kit.clock import virtual

MODEL = {"id": "m", "owned_by": "vllm", "root": "org/m", "parent": None, "max_model_len": 4096}


class Told:
    """A pool whose answers are as told; one for `None` never comes."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {f"/{path}": answer for path, answer in answers.items()}
        self.asked: list[str] = []

    async def get(self, path: str, *, fresh: bool = False) -> tuple[int, bytes]:
        self.asked.append(path)
        if path == "/health":
            return 200, b""
        if path == "/v1/models":
            return 200, msgspec.json.encode({"data": [self.answers["/model"]]})
        answer = self.answers.get(path, (404, b""))
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return cast("tuple[int, bytes]", answer)

    def drop_idle(self) -> None:
        pass

    def close(self) -> None:
        pass


def vllm(version: str = "0.32.0", name: str = "a", **model: Any) -> tuple[Backend, Told]:
    told = Told(version=(200, msgspec.json.encode({"version": version})), model=MODEL | model)
    return Backend(name, cast(Pool, told), 9), told


def clock() -> float:
    return asyncio.get_running_loop().time()


# What tells a build


@pytest.mark.parametrize(
    "other",
    [
        {"root": "org/m-v2"},
        {"parent": "base"},
        {"max_model_len": 8192},
        {"owned_by": "sglang"},
        {"meta": {"n_params": 7}},
    ],
    ids=str,
)
def test_another_source_of_the_weights_is_another_build(other: dict[str, Any]) -> None:
    assert digests_of("1", [MODEL])["m"] != digests_of("1", [MODEL | other])["m"]


def test_another_version_is_another_build_of_every_model() -> None:
    one, other = digests_of("0.32.0", [MODEL]), digests_of("0.33.0", [MODEL])
    assert one["m"] != other["m"]
    assert one[None] != other[None]


def test_what_is_new_in_each_answer_is_no_part_of_a_build() -> None:
    new = {"created": 2, "permission": [{"id": "modelperm-2", "created": 2}], "object": "model"}
    assert digests_of("1", [MODEL | new]) == digests_of("1", [MODEL | {"created": 1}])


def test_the_build_of_a_request_without_a_model_s_name_is_of_all_models() -> None:
    assert digests_of("1", [MODEL])[None] != digests_of("1", [MODEL, MODEL | {"id": "n"}])[None]
    assert list(digests_of("1", [])) == [None]


TEXT = st.text(st.characters(codec="utf-8"))
VALUE = st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.dictionaries(TEXT, st.lists(TEXT))


@given(st.lists(st.dictionaries(st.sampled_from([*MODEL, "meta", "created"]), VALUE)))
def test_no_list_of_models_is_an_error(models: list[dict[str, Any]]) -> None:
    listed = msgspec.json.decode(json.dumps(models, allow_nan=False) if _finite(models) else "[]")
    assert digests_of("1", listed) == digests_of("1", listed)


def _finite(models: list[dict[str, Any]]) -> bool:
    try:
        return bool(json.dumps(models, allow_nan=False))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b'{"version":"0.32.0+cpu"}', "0.32.0+cpu"),
        (b'{"build_info":"b6000-abc","model_path":"/m/x.gguf","total_slots":1}', "b6000-abc /m/x.gguf"),
        (b'{"version":null,"other":1}', ""),
        (b'{"version":7}', "7"),
        (b'["0.32"]', ""),
        (b"\xff", ""),
        (b"[" * 5000, ""),
        (b'{"version":"%s"}' % (b"x" * 5000), "x" * 1024),
    ],
)
def test_a_version_is_read_from_what_vllm_and_llama_cpp_tell(body: bytes, version: str) -> None:
    assert version_in(body) == version


@pytest.mark.parametrize(
    ("owner", "answers", "asked", "version"),
    [
        ("vllm", {"version": (200, b'{"version":"1"}')}, ["/version"], "1"),
        ("llamacpp", {"props": (200, b'{"build_info":"b1"}')}, ["/props"], "b1"),
        ("sglang", {}, [], ""),
        (7, {}, [], ""),
        ("vllm", {}, ["/version"], ""),
        ("vllm", {"version": (500, b"")}, ["/version"], None),
        ("vllm", {"version": (499, b'{"version":"1"}')}, ["/version"], ""),
        ("vllm", {"version": GatewayError(Code.UPSTREAM_UNREACHABLE, "x")}, ["/version"], None),
        ("vllm", {"version": None}, ["/version"], None),
    ],
    ids=str,
)
@virtual
async def test_a_version_is_asked_for_where_there_is_one(
    owner: Any, answers: dict[str, Any], asked: list[str], version: str | None
) -> None:
    told, began = Told(**answers), clock()
    assert await version_of(cast(Pool, told), [MODEL | {"owned_by": owner}]) == version
    assert told.asked == asked
    assert clock() - began == (VERSION_SECONDS if None in answers.values() else 0)


# When it changes


@virtual
async def test_an_engine_is_asked_for_its_version_once_and_again_after_it_was_away() -> None:
    backend, told = vllm()
    engines = Backends([backend], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    await HealthChecks(engines, clock=clock).check()
    assert told.asked.count("/version") == 1
    first = backend.build.digests["m"]
    engines.record_unreachable(backend, "refused")
    told.answers["/version"] = 200, b'{"version":"0.33.0"}'
    await HealthChecks(engines, clock=clock).check()
    assert told.asked.count("/version") == 2
    assert not engines.makes("m", first)
    assert engines.makes("m", backend.build.digests["m"])


@virtual
async def test_a_version_that_cannot_be_had_now_is_asked_for_with_the_next_look() -> None:
    backend, told = vllm()
    told.answers["/version"] = 503, b""
    engines = Backends([backend], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    assert backend.up
    assert backend.build.digests == {}
    assert engines.makes("m", b"anything")  # nothing is known
    told.answers["/version"] = 404, b""
    await HealthChecks(engines, clock=clock).check()
    assert not engines.makes("m", b"anything")


@virtual
async def test_while_two_builds_serve_a_model_the_answers_of_both_are_good() -> None:
    (old, _), (new, _) = vllm("1", "a"), vllm("2", "b")
    engines = Backends([old, new], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    of_old, of_new = (engines.build_of(name, "m", clock()) for name in ("a", "b"))
    assert of_old != of_new
    assert of_old
    assert of_new
    assert engines.makes("m", of_old)
    assert engines.makes("m", of_new)
    engines.change([], [old])
    assert not engines.makes("m", of_old)
    assert engines.makes("m", of_new)


@virtual
async def test_replicas_that_are_alike_have_one_build() -> None:
    (one, _), (other, _) = vllm("1", "a", created=1), vllm("1", "b", created=2)
    engines = Backends([one, other], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    assert engines.build_of("a", "m", clock()) == engines.build_of("b", "m", clock())
    assert {len(builds) for builds in in_common([one.build, other.build]).values()} == {1}


@virtual
async def test_an_engine_that_is_down_keeps_its_build_and_what_it_ends_meanwhile_is_not_stored() -> None:
    backend, _ = vllm()
    engines = Backends([backend], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    build = engines.build_of("a", "m", clock())
    assert build
    engines.record_unreachable(backend, "refused")
    assert engines.makes("m", build)
    assert engines.build_of("a", "m", clock()) is None


@virtual
async def test_an_answer_asked_for_before_its_engine_s_build_changed_is_of_nobody_s() -> None:
    backend, told = vllm()
    engines = Backends([backend], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    await asyncio.sleep(1.0)
    asked = clock()
    assert engines.build_of("a", "m", asked) is not None
    await asyncio.sleep(1.0)
    told.answers["/model"] = MODEL | {"root": "org/m-v2"}
    await HealthChecks(engines, clock=clock).check()
    assert engines.build_of("a", "m", asked) is None
    assert engines.build_of("a", "m", clock()) is not None
    assert engines.build_of("unknown", "m", clock()) is None
    assert engines.build_of(None, "m", clock()) is None
    assert engines.build_of("a", "m", None) is None


@virtual
async def test_a_model_that_nobody_lists_is_of_all_models_build() -> None:
    backend, _ = vllm()
    engines = Backends([backend], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    build = engines.build_of("a", "unlisted", clock())
    assert build == backend.build.digests[None]
    assert engines.makes(None, build or b"")
    assert not engines.makes("m", build or b"")


# Restarts


@virtual
async def test_a_restart_forgets_what_was_seen_and_has_the_engine_looked_at_soon() -> None:
    backend, told = vllm()
    restarted: list[Backend] = []
    engines = Backends([backend], clock=clock, on_restart=restarted.append)
    watch = asyncio.ensure_future(HealthChecks(engines, clock=clock).run(1000.0))
    await asyncio.sleep(0.1)
    await HealthChecks(engines, clock=clock).check()
    engines.started(backend, 1.0)
    engines.started(backend, 1.0)
    backend.few = True
    await asyncio.sleep(1.0)
    looks, epoch, asked = told.asked.count("/version"), backend.abilities.epoch, clock()
    assert (restarted, backend.few) == ([], True)
    engines.started(backend, 2.0)
    assert (restarted, backend.few, backend.abilities.epoch) == ([backend], False, epoch + 1)
    await asyncio.sleep(1.0)
    assert told.asked.count("/version") == looks + 1
    assert engines.build_of("a", "m", asked - 0.5) is None
    assert engines.build_of("a", "m", clock()) is not None  # the same build as before: nothing is flushed
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


@virtual
async def test_the_first_start_reported_after_an_engine_was_away_is_no_restart_unheard_of() -> None:
    backend, _ = vllm()
    engines = Backends([backend], clock=clock)
    await HealthChecks(engines, clock=clock).check()
    engines.started(backend, 1.0)
    engines.record_unreachable(backend, "refused")
    await HealthChecks(engines, clock=clock).check()
    epoch = backend.abilities.epoch
    engines.started(backend, 2.0)
    assert backend.abilities.epoch == epoch


def test_several_processes_behind_one_url_are_each_news_once() -> None:
    build = Build()
    assert [build.began(at, 0.0) for at in (1.0, 2.0, 1.0, 2.0, 3.0, 1.0)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    for at in range(2 * MAX_STARTS):
        build.began(float(at), 0.0)
    assert len(build._starts) == MAX_STARTS


@virtual
async def test_an_engine_that_is_leaving_restarts_for_nobody() -> None:
    backend, _ = vllm()
    engines = Backends([backend], clock=clock)
    engines.started(backend, 1.0)
    backend.leaving = True
    epoch = backend.abilities.epoch
    engines.started(backend, 2.0)
    assert backend.abilities.epoch == epoch

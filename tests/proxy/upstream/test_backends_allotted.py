"""An engine's limit, of which this process may use a part."""

from __future__ import annotations

from proxy.upstream.backends import Backend, Backends
from tests.kit.trip import MemoryEngine


def backend_of(most: int) -> Backend:
    return Backend("http://a", MemoryEngine(), most)  # type: ignore[arg-type]


def test_a_process_has_the_smaller_of_its_part_and_the_limit() -> None:
    backend = backend_of(8)
    assert (backend.max_inflight, backend.most) == (8, 8)
    backend.allot(3)
    assert (backend.max_inflight, backend.most) == (3, 8)
    backend.limit(2)
    assert (backend.max_inflight, backend.most) == (2, 2)
    backend.limit(16)
    assert (backend.max_inflight, backend.most) == (3, 16)


def test_without_a_permit_nothing_is_sent_and_requests_under_way_go_on() -> None:
    backend = backend_of(2)
    backends = Backends([backend])
    lease = backends.acquire("m1")
    assert lease is not None
    backend.allot(0)
    assert backends.acquire("m1") is None
    lease.release()
    assert (backend.inflight, backends.acquire("m1")) == (0, None)
    backend.allot(1)
    assert backends.acquire("m1") is not None


def test_a_limit_that_all_processes_together_have_reached_counts_as_reached() -> None:
    backend = backend_of(8)
    assert not backend.take_reached()
    backend.mark_reached()
    assert backend.take_reached()
    assert not backend.take_reached()

"""What clients are told of places that an engine names: their own path, or nothing."""

from __future__ import annotations

import pytest

from proxy.upstream.http.relocation import PLACES, engine_at, told
from tests.kit.client import call
from tests.kit.cpu import cpu_seconds
from tests.kit.engine import Engine
from tests.kit.running import gateway

URL = "http://gpu-1.lan:8000"
UNDER = "http://gpu-1.lan:8000/vllm"


@pytest.mark.parametrize(
    ("url", "name", "value", "right"),
    [
        (URL, "location", "http://gpu-1.lan:8000/v1/x?a=b#c", "/v1/x?a=b#c"),
        (URL, "location", "HTTP://GPU-1.LAN:8000/v1/x", "/v1/x"),
        (URL, "location", "https://gpu-1.lan:8000/v1/x", "/v1/x"),
        (URL, "location", "//gpu-1.lan:8000/v1/x", "/v1/x"),
        (URL, "location", "http://gpu-1.lan:8000", "/"),
        (URL, "location", "http://gpu-1.lan:8000?a", "/?a"),
        (URL, "location", "/v1/x", "/v1/x"),
        (URL, "location", "x/y?z", "x/y?z"),
        (URL, "location", "http://gpu-2.lan:8000/v1/x", None),
        (URL, "location", "https://elsewhere.example/x", None),
        (URL, "location", "http://gpu-1.lan:8000//evil.example/x", None),
        (URL, "location", "//evil.example/x", None),
        (URL, "location", "/\\evil.example", None),
        (URL, "location", "javascript:alert(1)", None),
        (URL, "location", "http://u@gpu-1.lan:8000/x", None),
        (URL, "location", "/v1/x?next=http://gpu-1.lan:8000/y", None),
        (URL, "location", "/v1/a b", None),
        (UNDER, "location", "http://gpu-1.lan:8000/vllm/v1/x", "/v1/x"),
        (UNDER, "location", "/vllm/v1/x", "/v1/x"),
        (UNDER, "location", "/vllm", "/"),
        (UNDER, "location", "/vllmx/y", None),
        (UNDER, "location", "/v1/x", None),
        ("http://gpu-1.lan", "location", "http://gpu-1.lan:80/x", "/x"),
        ("http://gpu-1.lan:80", "location", "http://gpu-1.lan/x", "/x"),
        ("http://gpu-1.lan:80", "location", "http://gpu-1.lan:80/x", "/x"),
        ("https://gpu-1.lan:443/b", "location", "https://gpu-1.lan/b/x", "/x"),
        ("https://gpu-1.lan", "location", "https://gpu-1.lan:80/x", None),
        (URL, "location", "http://gpu-1.lan/x", None),
        ("unix:///run/vllm.sock", "location", "http://localhost/x", "/x"),
        (URL, "content-location", "http://gpu-1.lan:8000/v1/x", "/v1/x"),
        (URL, "refresh", "5; url=http://gpu-1.lan:8000/v1/x", "5; url=/v1/x"),
        (URL, "refresh", "0;URL='http://gpu-1.lan:8000/v1/x'", "0;URL=/v1/x"),
        (URL, "refresh", "5", "5"),
        (URL, "refresh", "5; url=http://elsewhere/x", None),
        (
            URL,
            "link",
            '<http://gpu-1.lan:8000/p>; rel="next", </q>; rel="prev"',
            '</p>; rel="next", </q>; rel="prev"',
        ),
        (URL, "link", "<http://elsewhere/p>; rel=next", None),
        (URL, "link", "nonsense", None),
        (URL, "alt-svc", 'h3=":443"', None),
        (URL, "via", "1.1 gpu-1", None),
        (URL, "x-accel-redirect", "/internal/x", None),
    ],
)
def test_a_place_is_the_client_s_or_nothing(url: str, name: str, value: str, right: str | None) -> None:
    assert name in PLACES
    assert told(name, value, engine_at(url)) == right


@pytest.mark.parametrize(
    ("url", "value", "names"),
    [
        (URL, "served by gpu-1.lan:8000", True),
        (URL, "Domain=GPU-1.lan; Path=/", True),
        (URL, "agpu-1.lan:80001", False),
        (URL, "other", False),
        ("http://vllm:8000", "vllm/0.32", False),
        ("http://vllm", "vllm/0.32", False),
        ("http://vllm", "at vllm:80", True),
        ("https://vllm", "at vllm:443", True),
        ("https://vllm", "at vllm:80", False),
        ("http://[::1]:8000", "at ::1", True),
        (URL, "a%2525252567pu-1.lan:8000", False),  # encoded once more than is looked for
        ("http://vllm:8000", "http://vllm:8000/x", True),
        ("http://127.0.0.1:8000", "127.0.0.1", True),
        ("http://127.0.0.1:8000", "1127.0.0.15", False),
        ("unix:///run/vllm.sock", "at /run/vllm.sock", True),
        (URL, "/login?next=http%3A%2F%2Fgpu-1.lan%3A8000%2Fv1", True),
        (URL, "/login?next=http%253a%252f%252fGPU%252d1.lan", True),
        (URL, "100%", False),
    ],
)
def test_an_address_is_found_in_a_header_of_whichever_name(url: str, value: str, names: bool) -> None:
    assert engine_at(url).named(value) is names


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("refresh", f"0; url=a{' ' * 60_000}b c"),
        ("refresh", f"{' ' * 60_000}x"),
        ("refresh", f"0; url=\"{'a' * 60_000}'"),
        ("link", "<" * 60_000),
        ("location", "/" + "%25" * 20_000),
    ],
)
def test_a_place_is_read_in_time_linear_in_its_length(name: str, value: str) -> None:
    assert cpu_seconds(lambda: told(name, value, engine_at(URL))) < 0.2


async def test_no_client_sees_an_engine_s_address(engine: Engine) -> None:
    there = f"{engine.url}/v1/y"
    sent = [
        ("Location", there),
        ("Content-Location", there),
        ("Link", f"<{there}>; rel=next"),
        ("Refresh", f"1; url={there}"),
        ("Alt-Svc", 'h2="gpu-1:443"'),
        ("X-Served-By", engine.url.removeprefix("http://")),
        ("Set-Cookie", "a=b; Domain=127.0.0.1"),
        ("X-Other", "kept"),
    ]
    engine.auto(lambda turn: turn.respond(307, b"", sent))
    async with gateway(engine) as app:
        answer = await call(app.url, "POST", "/v1/x", b"{}")
    assert answer.status == 307
    assert engine.url.removeprefix("http://").encode() not in answer.raw
    told = dict(answer.head.headers)
    assert (told["location"], told["content-location"]) == ("/v1/y", "/v1/y")
    assert (told["link"], told["refresh"], told["x-other"]) == ("</v1/y>; rel=next", "1; url=/v1/y", "kept")
    assert not {"alt-svc", "x-served-by", "set-cookie"} & told.keys()

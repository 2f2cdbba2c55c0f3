"""The peers: configurations, command lines, the verdict of a check."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from ops.bench.peers import PEERS, peer
from ops.bench.peers.__main__ import main
from ops.bench.peers.base import PINS, InstallError
from ops.bench.peers.check import PLAIN, STREAMED, Answer, verdict
from ops.bench.peers.debian import haproxy_config, nginx_config
from ops.bench.peers.naive_proxy import make_app
from ops.bench.peers.npm import Portkey, package
from ops.bench.peers.pypi import LiteLLM
from ops.bench.wire import events, expected

ENGINE = "http://127.0.0.1:8000"


def faked(name: str, home: Path) -> None:
    """The files by which a driver sees that its peer is installed."""
    for path in (
        f"{name}/usr/sbin/{name}",
        f"{name.removesuffix('-rr')}/venv/bin/python",
        f"{name}/node_modules/@portkey-ai/gateway/build/start-server.js",
    ):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).touch()


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A named pipe: its reader sees the end when the last process that holds it has exited."""
    path = tmp_path / "held"
    os.mkfifo(path)
    return path


# Configurations and command lines


def test_nginx_streams_unbuffered_over_kept_connections_with_one_worker(tmp_path: Path) -> None:
    text = nginx_config(tmp_path, 9000, ENGINE, files=4096, user=None)
    for line in (
        "worker_processes 1;",
        "worker_rlimit_nofile 4096;",
        "use epoll;",
        "access_log off;",
        "proxy_buffering off;",
        "proxy_http_version 1.1;",
        'proxy_set_header Connection "";',
        "server 127.0.0.1:8000;",
        "keepalive 4096;",
        "listen 127.0.0.1:9000 backlog=4096;",
    ):
        assert line in text
    assert text.count("{") == text.count("}")
    assert "user " not in text


def test_nginx_writes_only_into_its_work_folder(tmp_path: Path) -> None:
    text = nginx_config(tmp_path, 9000, ENGINE, files=4096, user="root")
    assert text.startswith("user root;\n")
    paths = re.findall(r"^ *(?:pid|error_log|\w+_temp_path) (\S+?)[ ;]", text, re.MULTILINE)
    assert len(paths) == 7
    assert all(path.startswith(f"{tmp_path}/") for path in paths)


@pytest.mark.parametrize(("files", "connections"), [(65536, 8192), (1024, 480), (100, 64)])
def test_haproxy_takes_one_thread_and_no_more_connections_than_it_may_open(files: int, connections: int) -> None:
    text = haproxy_config(9000, ENGINE, files=files)
    assert f"maxconn {connections}\n" in text
    assert "nbthread 1\n" in text
    assert "bind 127.0.0.1:9000 " in text
    assert "server engine 127.0.0.1:8000 " in text


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_listens_on_loopback_and_is_told_its_port_and_engine(name: str, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    faked(name, home)
    command = peer(name).command(home, work, 9000, ENGINE)
    said = " ".join(command.argv) + "".join(path.read_text() for path in work.iterdir())
    said += " ".join(peer(name).headers(ENGINE).values())
    assert "9000" in said
    assert "127.0.0.1:8000" in said
    assert "0.0.0.0" not in said
    assert peer(name).name == name


@pytest.mark.parametrize("name", sorted(PEERS.keys() - {"aiohttp-naive"}))
def test_a_peer_that_is_not_installed_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"python -m ops\.bench\.peers install"):
        peer(name).command(tmp_path, tmp_path, 9000, ENGINE)
    with pytest.raises(InstallError):
        peer(name).version(tmp_path)


@pytest.mark.parametrize("name", ["vllm-router", "vllm-router-rr", "sglang-router", "smg"])
def test_a_router_has_one_thread_and_its_metrics_on_loopback(name: str, tmp_path: Path) -> None:
    faked(name, tmp_path)
    command = peer(name).command(tmp_path, tmp_path, 9000, ENGINE)
    assert command.env["TOKIO_WORKER_THREADS"] == "1"
    assert command.argv[command.argv.index("--prometheus-host") + 1] == "127.0.0.1"
    assert ("round_robin" in command.argv) == (name != "vllm-router")


def test_the_two_policies_of_vllm_router_share_one_installation(tmp_path: Path) -> None:
    faked("vllm-router", tmp_path)
    commands = [peer(name).command(tmp_path, tmp_path, 1, ENGINE) for name in ("vllm-router", "vllm-router-rr")]
    assert commands[0].argv[0] == commands[1].argv[0]


def test_litellm_has_one_worker_a_key_and_fetches_nothing(tmp_path: Path) -> None:
    faked("litellm", tmp_path)
    command = LiteLLM().command(tmp_path, tmp_path, 9000, ENGINE)
    assert list(command.argv[-4:]) == ["--num_workers", "1", "--telemetry", "False"]
    assert command.env["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"
    key = LiteLLM().headers(ENGINE)["Authorization"].removeprefix("Bearer ")
    assert f"master_key: {key}\n" in (tmp_path / "litellm.yaml").read_text()


def test_portkey_holds_the_two_dependencies_that_break_streams() -> None:
    asked = json.loads(package())
    assert asked["overrides"] == {"hono": PINS["hono"], "@hono/node-server": PINS["@hono/node-server"]}
    assert asked["dependencies"] == {"@portkey-ai/gateway": PINS["@portkey-ai/gateway"]}
    assert Portkey().headers(ENGINE)["x-portkey-custom-host"] == f"{ENGINE}/v1"


def test_every_pin_is_one_exact_version() -> None:
    assert [
        version for version in PINS.values() if not re.fullmatch(r"\d+(\.\d+)+(-\d+\+deb\d+u\d+)?", version)
    ] == []


# Checking


@pytest.mark.parametrize(
    ("answer", "reserialises", "said"),
    [
        (Answer(200, (expected(PLAIN),)), False, "same bytes"),
        (Answer(200, (expected(PLAIN).replace(b'"created"', b' "created"'),)), True, "same text"),
        (Answer(200, (expected(PLAIN).replace(b'"created"', b' "created"'),)), False, "wrong: "),
        (Answer(200, (expected(PLAIN).replace(b"token", b"tokem", 1),)), True, "wrong: "),
        (Answer(500, (b"Something went wrong",)), False, "wrong: HTTP 500"),
    ],
)
def test_a_plain_answer_is_judged_by_its_bytes_or_its_text(answer: Answer, reserialises: bool, said: str) -> None:
    assert verdict(PLAIN, answer, reserialises=reserialises).startswith(said)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (tuple(events(STREAMED)), "same bytes"),
        ((expected(STREAMED),), "wrong: the stream was buffered"),
        (tuple(events(STREAMED)[:-1]), "wrong: "),
        ((b"",), "wrong: "),
    ],
)
def test_a_stream_must_come_whole_and_in_pieces(pieces: tuple[bytes, ...], said: str) -> None:
    assert verdict(STREAMED, Answer(200, pieces), reserialises=False).startswith(said)


def test_an_unknown_peer_is_refused_with_the_names_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["check", "envoy"])
    assert "unknown peer envoy: choose from nginx, haproxy" in capsys.readouterr().err
    with pytest.raises(KeyError, match="unknown peer 'envoy'"):
        peer("envoy")


def test_a_check_of_what_is_not_installed_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "nginx", "--home", str(tmp_path)]) == 1
    assert "nginx is not installed (" in capsys.readouterr().err


def test_the_naive_peer_answers_as_a_process_and_is_gone_after(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "aiohttp-naive"]) == 0
    assert "JSON: same bytes; streamed: same bytes" in capsys.readouterr().out


async def test_the_naive_proxy_forwards_status_headers_and_bytes() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert "Transfer-Encoding" not in request.headers
        response = web.StreamResponse(status=418, headers={"x-seen": request.raw_path})
        await response.prepare(request)
        await response.write(await request.read())
        return response

    engine = web.Application()
    engine.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(engine) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with (
            TestClient(TestServer(make_app(url))) as client,
            client.post("/v1/a%2Fb?c=%26", data=b"{}") as response,
        ):
            assert (response.status, await response.read()) == (418, b"{}")
            assert response.headers["x-seen"] == "/v1/a%2Fb?c=%26"


def test_a_check_that_is_terminated_ends_its_peer(tmp_path: Path, held: Path) -> None:
    faked("nginx", tmp_path)
    program = tmp_path / "nginx" / "usr" / "sbin" / "nginx"
    program.write_text(f"#!/bin/sh\nexec 3>{held}\necho up >&3\ntail -f /dev/null & wait\n")
    program.chmod(0o755)
    argv = [sys.executable, "-m", "ops.bench.peers", "check", "nginx", "--home", str(tmp_path)]
    child = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        with held.open() as pipe:
            assert pipe.readline() == "up\n"
            child.terminate()
            assert child.wait(20) == 128 + signal.SIGTERM
            assert pipe.read() == ""
    finally:
        child.kill()
        child.wait()

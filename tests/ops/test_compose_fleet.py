"""compose.fleet.yaml: three gateways, a Redis Cluster and a balancer, rendered by Docker, and run as processes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.redis import server_binary
from tests.kit.client import get, post_json
from tests.kit.engine import Engine
from tests.kit.ports import free_port
from tests.kit.redis_fleet import eventually
from tests.kit.running import HELLO
from tests.ops.dockerfile import environment
from tests.ops.kit import OPS, ROOT, Ran, bare, check_config, documents, grace_is_enough, run, tool
from tests.ops.test_balancer import started
from tests.ops.test_compose import ALWAYS, EXAMPLE, SECRETS, Services, faults
from tests.system.test_process import Gateway, proxy

FLEET = (OPS / "compose.fleet.yaml").read_text()
NODES = ("gateway", "gateway-2", "gateway-3")
SERVERS = tuple(f"redis-{number}" for number in range(1, 7))
CHAT = "/v1/chat/completions"
STARTS = "redis-cluster"  # it ends when the Cluster is there


@cache
def _rendered() -> str:
    with tempfile.TemporaryDirectory(prefix="compose-") as folder:
        for name in ("compose.yaml", "compose.fleet.yaml"):
            (Path(folder) / name).write_text((OPS / name).read_text())
        (Path(folder) / ".env").write_text(EXAMPLE)
        files = ("-f", "compose.yaml", "-f", "compose.fleet.yaml")
        done = run(
            tool("docker-compose"), *files, "config", "--format", "json", env=bare(SECRETS), cwd=Path(folder)
        )
    assert done.code == 0, done.err
    return done.out


def rendered() -> Any:
    """A private copy of the project, with both files."""
    return json.loads(_rendered())


def test_it_has_three_gateways_six_servers_and_a_balancer_that_keep_the_rules() -> None:
    services: Services = rendered()["services"]
    assert set(services) == (ALWAYS - {"redis"}) | {"vllm-gpu", "balancer", STARTS, *NODES, *SERVERS}
    start = services.pop(STARTS)
    assert (start["restart"], start["read_only"], start["cap_drop"]) == ("no", True, ["ALL"])
    assert start["depends_on"].keys() == set(SERVERS)
    assert faults(services) == []
    assert [name for name, service in services.items() if service.get("ports")] == [
        "balancer",
        "grafana",
        "prometheus",
    ]


def test_the_gateways_differ_in_nothing_and_take_their_environment() -> None:
    services: Services = rendered()["services"]
    one, two, three = (services[name] for name in NODES)
    assert one == two == three
    done = check_config(["python", "-m", "proxy"], environment() | one["environment"])
    assert done.code == 0, done.err
    assert 'fleet = "auto"' in done.out
    assert SECRETS["REDIS_PASSWORD"] not in done.said
    assert grace_is_enough(float(one["stop_grace_period"].removesuffix("s")), done.out)


def test_prometheus_and_the_balancer_know_every_gateway() -> None:
    project = rendered()
    (file,) = re.findall(
        r"--config.file=/etc/prometheus/(\S+)", " ".join(project["services"]["prometheus"]["command"])
    )
    (config,) = documents((OPS / "prometheus" / file).read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs["gateway"] == [f"{name}:8080" for name in NODES]
    (usual,) = documents((OPS / "prometheus" / "prometheus.yml").read_text())
    assert [job["job_name"] for job in usual["scrape_configs"]] == list(jobs)
    balancer = project["configs"]["balancer"]["content"]
    assert re.findall(r"^ +server \w+ (\S+)", balancer, re.MULTILINE) == [f"{name}:8080" for name in NODES]
    allowed = project["services"]["gateway"]["environment"]["GATEWAY_ALLOWED_HOSTS"]
    assert allowed.split(",") == list(NODES)


def port_of_a_cluster() -> int:
    """A free port whose bus port, 10,000 above, is free too: redis-cli 6 introduces servers by that one only."""
    while True:
        port = free_port()
        with socket.socket() as bus:
            try:
                bus.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
        return port


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def servers(project: Any, folder: Path) -> AsyncIterator[list[int]]:
    """The six servers with the file's options, on ports of loopback."""
    file = folder / "redis.conf"
    file.write_text(project["configs"]["redis"]["content"])
    ports, children = [], []
    for name in SERVERS:
        words = project["services"][name]["command"][2:]
        home, port = folder / name, port_of_a_cluster()
        home.mkdir()
        own = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(home))
        quiet = asyncio.subprocess.DEVNULL
        child = await asyncio.create_subprocess_exec(str(server_binary()), str(file), *words, *own, stdout=quiet)
        ports.append(port)
        children.append(child)
    try:
        for port in ports:
            await eventually(partial(listens, port))  # in Compose the command waits for healthy servers
        yield ports
    finally:
        for child in children:
            child.kill()
            await child.wait()


async def make_cluster(project: Any, ports: list[int]) -> Ran:
    """The command that makes the Cluster, to its end."""
    words = [word.replace("$$", "$") for word in project["services"][STARTS]["command"]]
    assert words[:2] == ["sh", "-c"]
    tools = str(Path(tool("redis-cli", "apt-get install --no-install-recommends redis-tools")).parent)
    env = bare({"REDISCLI_AUTH": SECRETS["REDIS_PASSWORD"], "SERVERS": " ".join(f"127.0.0.1:{p}" for p in ports)})
    env["PATH"] = f"{tools}:{env['PATH']}"
    return await asyncio.to_thread(run, *words, env=env, cwd=ROOT)


async def live(gateway: Gateway) -> bool:
    return b"\ngateway_fleet_live 1\n" in (await get(gateway.url, "/metrics")).body


async def following(gateways: list[Gateway]) -> bool:
    pages = [(await get(gateway.url, "/metrics")).body for gateway in gateways]
    return sum(page.count(b"\ngateway_fleet_following 1\n") for page in pages) == len(gateways) - 1


@pytest.mark.e2e
async def test_as_processes_they_generate_once_for_clients_of_every_gateway(tmp_path: Path) -> None:
    project = rendered()
    given: dict[str, str] = environment() | project["services"]["gateway"]["environment"]
    given |= {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_REDIS_TIMEOUT_MS": "5000",
    }  # a busy machine may miss the default
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine())
        ports = await stack.enter_async_context(servers(project, tmp_path))
        made = await make_cluster(project, ports)
        assert made.code == 0, made.said
        assert "All 16384 slots covered" in made.out
        again = await make_cluster(project, ports)
        assert (again.code, again.out) == (0, ""), "it is there already"
        url = given["GATEWAY_REDIS_URL"]
        for name, port in zip(SERVERS, ports, strict=True):
            url = url.replace(f"{name}:6379", f"127.0.0.1:{port}")
        given |= {"GATEWAY_REDIS_URL": url, "GATEWAY_BACKENDS": engine.url, "GATEWAY_PROBE": "off"}
        gateways = [await stack.enter_async_context(proxy(**given)) for _ in NODES]
        for one in gateways:
            await eventually(partial(live, one))
        port, text = free_port(), project["configs"]["balancer"]["content"].replace("$$", "$")
        text = (
            text.replace("maxconn 20000", "maxconn 100")
            .replace("bind :8080", f"bind 127.0.0.1:{port}")
            .replace(" resolvers docker init-addr last,libc,none", "")
        )
        for name, one in zip(NODES, gateways, strict=True):
            text = text.replace(f" {name}:8080", f" 127.0.0.1:{one.url.rpartition(':')[2]}")
        front = await stack.enter_async_context(started("haproxy.cfg", text, tmp_path, port))
        body = HELLO | {"stream": True}
        clients = [asyncio.create_task(post_json(front, CHAT, body)) for _ in range(9)]
        turn = await engine.next_request()
        await turn.send("one")
        await eventually(lambda: following(gateways))  # one leads
        await turn.finish()
        answers = await asyncio.gather(*clients)
        assert [answer.status for answer in answers] == [200] * 9
        assert len({answer.body for answer in answers}) == 1
        assert len(engine.requests) == 1

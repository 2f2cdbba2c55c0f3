"""The compose file: parsed by Docker, checked against its schema and our rules; and its commands run."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import post_json
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.redis_server import redis_server
from tests.kit.running import HELLO
from tests.ops.dockerfile import environment, health_command
from tests.ops.kit import OPS, Ran, bare, check_config, documents, grace_is_enough, refusal, run, to_the_end, tool
from tests.system.test_process import proxy, stored

COMPOSE = (OPS / "compose.yaml").read_text()
EXAMPLE = (OPS / ".env.example").read_text()
SECRETS = {"REDIS_PASSWORD": "s3cretredis", "GRAFANA_PASSWORD": "s3cretgrafana"}
ALWAYS = {"gateway", "redis", "prometheus", "grafana"}

Services = dict[str, dict[str, Any]]


def config(folder: Path, shell: Mapping[str, str] = SECRETS, text: str = COMPOSE) -> Ran:
    """The output of `docker compose config` with the example's `.env`."""
    (folder / "compose.yaml").write_text(text)
    (folder / ".env").write_text(EXAMPLE)
    return run(tool("docker-compose"), "config", "--format", "json", env=bare(shell), cwd=folder)


def rendered(**shell: str) -> Any:
    """A private copy of the project."""
    return json.loads(_rendered(frozenset(shell.items())))


@cache
def _rendered(shell: frozenset[tuple[str, str]]) -> str:
    with tempfile.TemporaryDirectory(prefix="compose-") as folder:
        done = config(Path(folder), SECRETS | dict(shell))
    assert done.code == 0, done.err
    return done.out


def faults(services: Services) -> list[str]:
    """Violations of our rules for services."""
    found = []
    for name, service in services.items():
        logs, ports = service.get("logging", {}).get("options", {}), service.get("ports", [])
        reserved = service.get("deploy", {}).get("resources", {}).get("reservations")
        wants: dict[str, bool] = {
            "starts again after a crash or a boot": service.get("restart") == "unless-stopped",
            "has logs of bounded size": {"max-size", "max-file"} <= set(logs),
            "publishes on loopback only": all(port.get("host_ip") == "127.0.0.1" for port in ports),
            "has no more rights": "no-new-privileges:true" in service.get("security_opt", []),
            "is pinned": "build" in service or not re.search(r"(:latest|/[^:]+|^[^:/]+)$", service["image"]),
            "has bounded memory": "mem_limit" in service or bool(reserved),
            "says how it is": "build" in service or "healthcheck" in service,
            "cannot write where it need not": service.get("read_only") is True or name.startswith("vllm"),
            "keeps no capability": service.get("cap_drop") == ["ALL"] or name.startswith("vllm"),
        }
        found += [f"{name}: not so: {rule}" for rule, holds in wants.items() if not holds]
    for private in ("redis", "vllm-gpu", "vllm-cpu"):
        if services.get(private, {}).get("ports"):
            found.append(f"{private} is published")
    return found


def written_out(text: str) -> list[str]:
    """Secrets written into the file instead of referenced."""
    secret = re.compile(
        r"^\s*-?\s*(\w*(?:PASSWORD|TOKEN|API_KEY|requirepass)\w*)[:= ]+(?!\$\{)(\S+)", re.MULTILINE
    )
    return [name for name, _ in secret.findall(text)]


@pytest.mark.parametrize(
    ("shell", "engine", "backends"),
    [
        ({}, {"vllm-gpu"}, "http://vllm:8000"),
        ({"USE_GPU": "0"}, {"vllm-cpu"}, "http://vllm:8000"),
        ({"USE_GPU": "0", "VLLM_HOST": "http://gpu-1:8000"}, set(), "http://gpu-1:8000"),
        ({"COMPOSE_PROFILES": "cpu"}, {"vllm-cpu"}, "http://vllm:8000"),
        ({"COMPOSE_PROFILES": "gpu"}, {"vllm-gpu"}, "http://vllm:8000"),
    ],
)
def test_which_engine_is_started_and_asked(shell: dict[str, str], engine: set[str], backends: str) -> None:
    services: Services = rendered(**shell)["services"]
    assert set(services) == ALWAYS | engine
    assert services["gateway"]["environment"]["GATEWAY_BACKENDS"] == backends
    assert faults(services) == []


@pytest.mark.parametrize("use_gpu", ["0", "1"])
def test_the_model_that_is_named_is_the_one_served(use_gpu: str) -> None:
    (engine,) = (
        service
        for name, service in rendered(MODEL="org/other", USE_GPU=use_gpu)["services"].items()
        if name.startswith("vllm")
    )
    assert [*engine["entrypoint"], engine["command"][0]] == ["vllm", "serve", "org/other"]
    assert "--port=8000" in engine["command"]


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_without_a_password_it_says_where_to_set_it_and_starts_nothing(missing: str, tmp_path: Path) -> None:
    done = config(tmp_path, {name: value for name, value in SECRETS.items() if name != missing})
    assert done.code != 0
    assert missing in done.err
    assert "set it in ops/.env" in done.err


def test_it_keeps_to_the_schema_of_compose_files(tmp_path: Path) -> None:
    def judged(text: str) -> int:
        (tmp_path / "compose.yaml").write_text(text)
        schema = ("--builtin-schema", "vendor.compose-spec")
        return run(tool("check-jsonschema"), *schema, tmp_path / "compose.yaml").code

    assert judged(COMPOSE) == 0
    assert judged(COMPOSE.replace("stop_grace_period: 40s", "stop_grace_seconds: 40")) == 1


def test_docker_s_program_refuses_a_file_that_is_wrong(tmp_path: Path) -> None:
    done = config(tmp_path, text=COMPOSE.replace("networks: [state]", "networks: [stat]"))
    assert done.code != 0
    assert "stat" in done.err


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (lambda s: s["redis"].update(ports=[{"target": 6379, "host_ip": "127.0.0.1"}]), "redis is published"),
        (lambda s: s["gateway"]["ports"][0].pop("host_ip"), "gateway: not so: publishes on loopback only"),
        (lambda s: s["gateway"].pop("restart"), "gateway: not so: starts again after a crash or a boot"),
        (lambda s: s["redis"].pop("logging"), "redis: not so: has logs of bounded size"),
        (lambda s: s["redis"].pop("mem_limit"), "redis: not so: has bounded memory"),
        (lambda s: s["grafana"].pop("read_only"), "grafana: not so: cannot write where it need not"),
        (lambda s: s["grafana"].update(cap_drop=[]), "grafana: not so: keeps no capability"),
        (lambda s: s["vllm-gpu"].pop("security_opt"), "vllm-gpu: not so: has no more rights"),
        (lambda s: s["prometheus"].pop("healthcheck"), "prometheus: not so: says how it is"),
        (lambda s: s["redis"].update(image="redis"), "redis: not so: is pinned"),
        (lambda s: s["grafana"].update(image="grafana/grafana:latest"), "grafana: not so: is pinned"),
    ],
)
def test_each_rule_can_be_broken(breaks: Callable[[Services], object], told: str) -> None:
    services = rendered()["services"]
    breaks(services)
    assert faults(services) == [told]


def test_no_secret_is_written_out() -> None:
    assert written_out(COMPOSE) == []
    assert [name for name in written_out(EXAMPLE) if name in SECRETS] == []
    assert written_out("  GF_SECURITY_ADMIN_PASSWORD: admin\n      requirepass abc\n") == [
        "GF_SECURITY_ADMIN_PASSWORD",
        "requirepass",
    ]
    assert written_out("REDIS_PASSWORD=\n") == []


def test_the_gateway_takes_the_environment_that_it_is_given() -> None:
    service = rendered()["services"]["gateway"]
    given = environment() | service["environment"]
    done = check_config(["python", "-m", "proxy"], given)
    assert done.code == 0, done.err
    assert 'backends = ["http://vllm:8000"]' in done.out
    assert "redis:6379" in done.out
    assert SECRETS["REDIS_PASSWORD"] not in done.said
    assert grace_is_enough(float(service["stop_grace_period"].removesuffix("s")), done.out)
    assert "GATEWAY_SHARE" in refusal(given | {"GATEWAY_SHARE": "often"})


def test_a_host_without_a_scheme_is_refused_with_what_would_be_right() -> None:
    assert "as in http://gpu-1:8000" in refusal(environment() | {"GATEWAY_BACKENDS": "gpu-1:8000"})


def test_every_file_that_is_mounted_is_there(tmp_path: Path) -> None:
    mounts = [
        Path(volume["source"]).relative_to(tmp_path)
        for service in json.loads(config(tmp_path).out)["services"].values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert Path("prometheus") in mounts
    assert [str(path) for path in mounts if not (OPS / path).exists()] == []


def test_the_example_names_nothing_that_the_file_does_not_read() -> None:
    assert documents(COMPOSE)[0]["services"].keys() >= ALWAYS
    names = re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE)
    assert [
        name for name in names if name not in ("COMPOSE_PROFILES", "USE_GPU") and f"${{{name}:" not in COMPOSE
    ] == []


def redis_options(project: Any) -> list[str]:
    """The lines of its configuration as a command line."""
    lines = [shlex.split(line) for line in project["configs"]["redis"]["content"].splitlines()]
    return [word for name, *values in lines for word in (f"--{name}", *values)]


async def test_its_redis_asks_for_the_password_and_forgets_the_oldest_when_full() -> None:
    project = rendered()
    async with redis_server(*redis_options(project)) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(
            b"GET x\r\nAUTH %b\r\nCONFIG GET maxmemory\r\nCONFIG GET maxmemory-policy\r\n"
            % SECRETS["REDIS_PASSWORD"].encode()
        )
        said = await reader.readuntil(b"volatile-lru")
        writer.close()
        await writer.wait_closed()
    assert said.startswith(b"-NOAUTH")
    assert b"+OK" in said
    assert b"536870912" in said
    bound = project["services"]["redis"]["mem_limit"]
    assert int(bound) > 536870912, "it would be killed before it forgets"


@pytest.mark.e2e
async def test_gateway_and_redis_serve_as_processes_what_they_would_as_containers(engine: Engine) -> None:
    """The engine comes from VLLM_HOST, the Redis has its password; only host names are replaced."""
    engine.auto(echo_script())
    project = rendered(VLLM_HOST=engine.url)
    given: dict[str, str] = environment() | project["services"]["gateway"]["environment"]
    given["GATEWAY_HOST"] = "127.0.0.1"
    given["GATEWAY_REDIS_TIMEOUT_MS"] = "5000"  # a busy machine may miss the default
    async with redis_server(*redis_options(project)) as path:
        given["GATEWAY_REDIS_URL"] = given["GATEWAY_REDIS_URL"].replace("redis://", "unix://").replace(
            "@redis:6379/0", f"@{path}"
        )  # fmt: skip
        async with proxy(**given) as running:
            port = {"GATEWAY_PORT": running.url.rpartition(":")[2]}
            health = await to_the_end(sys.executable, *health_command()[1:], env=given | port)
            first = await post_json(running.url, "/v1/chat/completions", HELLO)
            await stored(running)
            second = await post_json(running.url, "/v1/chat/completions", HELLO)
    assert health.code == 0, health.said
    assert (first.head["x-gateway-cache"], second.head["x-gateway-cache"]) == ("miss", "hit")
    assert second.body == first.body
    assert running.logged[-1] | {"ts": ""} == {"ts": "", "level": "info", "msg": "drained", "cut": 0}

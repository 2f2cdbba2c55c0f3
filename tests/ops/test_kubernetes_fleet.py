"""ops/k8s-fleet: the gateways of ops/k8s with the fleet on, and a Redis Cluster: schema, rules, commands run."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from proxy.embedded.redis import server_binary
from tests.kit.missing import KUBECTL, lacking
from tests.ops.dockerfile import environment
from tests.ops.kit import OPS, ROOT, bare, check_config, documents, run, tool
from tests.ops.test_compose_fleet import port_of_a_cluster

FOLDER = OPS / "k8s-fleet"
PASSWORD = "s3cretredis"

Objects = dict[tuple[str, str], dict[str, Any]]


@cache
def _rendered() -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        lacking("kubectl", KUBECTL, in_ci=False)
    done = run(kubectl, "kustomize", FOLDER)
    assert done.code == 0, done.err
    return done.out


def objects(text: str) -> Objects:
    return {(each["kind"], each["metadata"]["name"]): each for each in documents(text)}


def redis() -> Objects:
    return objects((FOLDER / "redis.yaml").read_text())


def box(made: dict[str, Any]) -> dict[str, Any]:
    (found,) = made["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_kustomize_adds_the_fleet_and_the_cluster_to_the_gateways(tmp_path: Path) -> None:
    made = objects(_rendered())
    (tmp_path / "all.yaml").write_text(_rendered())
    assert run(tool("kubernetes-validate"), "--strict", "--quiet", tmp_path / "all.yaml").code == 0
    given = {variable["name"]: variable.get("value") for variable in box(made["Deployment", "gateway"])["env"]}
    assert given["GATEWAY_FLEET"] == "auto"
    assert "GATEWAY_REDIS_URL" in given
    assert {each["metadata"]["namespace"] for each in made.values()} == {"gateway"}
    assert made.keys() >= redis().keys()


def test_the_gateway_takes_the_fleet_with_the_url_that_the_page_says(tmp_path: Path) -> None:
    (page,) = [line for line in (FOLDER / "kustomization.yaml").read_text().splitlines() if "redis-url=" in line]
    url = page.partition("redis-url=")[2].split()[0].replace("PASSWORD", PASSWORD)
    settings = (OPS / "k8s" / "config.yaml").read_text()
    (config,) = documents(settings)
    (tmp_path / "gateway.toml").write_text(config["data"]["gateway.toml"])
    given = {"GATEWAY_CONFIG": str(tmp_path / "gateway.toml"), "GATEWAY_REDIS_URL": url, "GATEWAY_FLEET": "auto"}
    done = check_config(["python", "-m", "proxy"], environment() | given)
    assert done.code == 0, done.said
    assert 'fleet = "auto"' in done.out
    assert PASSWORD not in done.said
    service = redis()["Service", "redis"]
    assert url.rpartition("@")[2] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def test_its_pods_have_no_more_rights_than_they_need_and_the_gateways_reach_them() -> None:
    made = redis()
    for kind, name in (("StatefulSet", "redis"), ("Job", "redis-cluster")):
        spec, container = made[kind, name]["spec"]["template"]["spec"], box(made[kind, name])
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert [v for v in container["env"] if v["name"] == "REDISCLI_AUTH" and "value" in v] == []
    labels = made["StatefulSet", "redis"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget"):
        selector = made[kind, "redis"]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels
    policies = documents((OPS / "k8s" / "network.yaml").read_text())
    opened = [rule for policy in policies for rule in policy["spec"]["egress"]]
    assert {
        "to": [{"podSelector": {"matchLabels": labels}}],
        "ports": [{"protocol": "TCP", "port": 6379}],
    } in opened
    callers = made["NetworkPolicy", "redis"]["spec"]["ingress"][0]["from"]
    job = made["Job", "redis-cluster"]["spec"]["template"]["metadata"]["labels"]
    gateway = {"app.kubernetes.io/name": "gateway"}
    assert [each["podSelector"]["matchLabels"] for each in callers] == [gateway, job]


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[list[int]]:
    """The pods' servers with their file and arguments, on ports of loopback."""
    made = redis()
    file = folder / "redis.conf"
    file.write_text(made["ConfigMap", "redis"]["data"]["redis.conf"].replace("dir /data\n", ""))
    _, *words = box(made["StatefulSet", "redis"])["args"]
    words = [word.replace("$(REDISCLI_AUTH)", PASSWORD).replace("$(POD_IP)", "127.0.0.1") for word in words]
    ports, children = [], []
    for number in range(made["StatefulSet", "redis"]["spec"]["replicas"]):
        port, home = port_of_a_cluster(), folder / f"redis-{number}"
        home.mkdir()
        own = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(home))
        quiet = asyncio.subprocess.DEVNULL
        children.append(
            await asyncio.create_subprocess_exec(str(server_binary()), str(file), *words, *own, stdout=quiet)
        )
        ports.append(port)
    try:
        yield ports
    finally:
        for child in children:
            child.kill()
            await child.wait()


@pytest.mark.e2e
async def test_the_job_makes_the_cluster_once() -> None:
    job = box(redis()["Job", "redis-cluster"])
    (script,) = job["args"]
    with tempfile.TemporaryDirectory(prefix="k8s-") as name:
        async with servers(Path(name)) as ports:
            tools = Path(tool("redis-cli", "apt-get install --no-install-recommends redis-tools")).parent
            # Pods have an address each and one port; here they have one address and a port each.
            for old, new in (
                ('"redis-$number.redis"', "127.0.0.1"),
                ('-h "$address"', f"-p {ports[0]}"),
                ("$address:6379", "$address:$1"),
                ("servers=\n", f"servers=; set -- {' '.join(map(str, ports))}\n"),
                ("\ndone", "; shift\ndone"),
                ("-h redis-0.redis", f"-p {ports[0]}"),
            ):
                assert old in script
                script = script.replace(old, new)
            env = bare({"REDISCLI_AUTH": PASSWORD})
            env["PATH"] = f"{tools}:{env['PATH']}"
            words = [*job["command"], script]
            while (first := await asyncio.to_thread(run, *words, env=env, cwd=ROOT)).code != 0:
                assert "Connection refused" in first.err, first.said  # as while a pod starts: the Job tries again
            assert "All 16384 slots covered" in first.out
            again = await asyncio.to_thread(run, *words, env=env, cwd=ROOT)
            assert (again.code, again.out) == (0, "")

"""The Kubernetes manifests: their schemas, rules across objects, and their command run as a process."""

from __future__ import annotations

import copy
import re
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kit.client import get
from tests.kit.engine import Engine
from tests.kit.missing import KUBECTL, lacking
from tests.kit.running import gateway
from tests.ops.dockerfile import environment, only
from tests.ops.kit import OPS, check_config, documents, grace_is_enough, printed, run, tool

K8S = OPS / "k8s"
SECRET = re.compile(r"(api_key|password|secret|redis_url|redis)$", re.IGNORECASE)  # names of settings

Objects = dict[str, dict[str, Any]]


def kustomization() -> dict[str, Any]:
    (found,) = documents((K8S / "kustomization.yaml").read_text())
    assert isinstance(found, dict)
    return found


def objects() -> Objects:
    """The gateway's objects by kind; there is one of each. The engines' are `engines()`."""
    files = [name for name in kustomization()["resources"] if name != "engines.yaml"]
    every = [document for name in files for document in documents((K8S / name).read_text())]
    assert len({document["kind"] for document in every}) == len(every)
    return {document["kind"]: document for document in every}


def engines() -> dict[str, Any]:
    """The Service whose name has the addresses of the engines."""
    assert "engines.yaml" in kustomization()["resources"]
    (service,) = documents((K8S / "engines.yaml").read_text())
    assert isinstance(service, dict)
    return service


def test_the_engines_are_found_by_a_headless_service_that_the_network_lets_through() -> None:
    service, made = engines(), objects()
    assert service["spec"]["clusterIP"] == "None", "else its name has one address"
    (port,) = service["spec"]["ports"]
    assert f'"dns+http://{service["metadata"]["name"]}:{port["port"]}"' in settings_file(made)
    pods = {"podSelector": {"matchLabels": service["spec"]["selector"]}}
    rules = [rule for rule in made["NetworkPolicy"]["spec"]["egress"] if pods in rule["to"]]
    assert [[opened["port"] for opened in rule["ports"]] for rule in rules] == [[port["port"]]]


def pod(objects: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


def container(objects: Objects) -> dict[str, Any]:
    (found,) = pod(objects)["containers"]
    assert isinstance(found, dict)
    return found


def settings_file(objects: Objects) -> str:
    return str(objects["ConfigMap"]["data"]["gateway.toml"])


def faults(objects: Objects) -> list[str]:
    """Violations of the restricted Pod Security Standard, and of rules across objects."""
    spec, box = pod(objects), container(objects)
    rollout = objects["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    ports = {port["name"]: port["containerPort"] for port in box["ports"]}
    mounted = {mount["mountPath"] for mount in box["volumeMounts"]}
    given = {variable["name"]: variable for variable in box["env"]}
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    opened = [rule["ports"] for rule in objects["NetworkPolicy"]["spec"]["ingress"]]
    own = tomllib.loads(settings_file(objects)).get("admin_port")
    served = [port["targetPort"] for port in objects["Service"]["spec"]["ports"]]
    holds = {
        "runs as nobody": spec["securityContext"].get("runAsNonRoot") is True,
        "runs as the image does": str(spec["securityContext"].get("runAsUser")) == only("USER"),
        "has the usual system calls": spec["securityContext"].get("seccompProfile") == {"type": "RuntimeDefault"},
        "gets no more rights": box["securityContext"].get("allowPrivilegeEscalation") is False,
        "keeps no capability": box["securityContext"].get("capabilities") == {"drop": ["ALL"]},
        "writes nowhere": box["securityContext"].get("readOnlyRootFilesystem") is True,
        "has no token": spec.get("automountServiceAccountToken") is False,
        "has bounded memory": "memory" in box["resources"].get("limits", {}),
        "secrets come by reference": all("value" not in given[name] for name in given if SECRET.search(name)),
        "no secret is in the file": not any(map(SECRET.search, tomllib.loads(settings_file(objects)))),
        "lives by /health": box["livenessProbe"]["httpGet"] == {"path": "/health", "port": "http"},
        "is ready by /ready": box["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"},
        "listens where it is asked": str(ports["http"]) == environment()["GATEWAY_PORT"],
        "is scraped at the operators' port": annotations["prometheus.io/port"] == str(ports["admin"]) == str(own),
        "may be reached there": [[port["port"] for port in rule] for rule in opened] == [["http"], ["admin"]],
        "offers operators' paths to no client": "admin" not in served,
        "is found by its Service": objects["Service"]["spec"]["selector"].items() <= labels.items(),
        "is served at its port": objects["Service"]["spec"]["ports"][0]["targetPort"] in ports,
        "is what may be disrupted": objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels,
        "is what is scaled": scaled["name"] == objects["Deployment"]["metadata"]["name"],
        "has its settings mounted": str(Path(given["GATEWAY_CONFIG"]["value"]).parent) in mounted,
        "never has fewer than it needs": rollout["maxUnavailable"] == 0,
    }  # fmt: skip
    return [rule for rule, held in holds.items() if not held]


def judged(*files: Path) -> int:
    return run(tool("kubernetes-validate"), "--strict", "--quiet", *files).code


def test_every_manifest_keeps_to_its_schema_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    files = [K8S / name for name in kustomization()["resources"]]
    assert judged(*files) == 0
    text = (K8S / "deployment.yaml").read_text()
    for old, new in (("periodSeconds: 10", "periodSeconds: often"), ("readinessProbe:", "readyProbe:")):
        assert old in text
        (tmp_path / "wrong.yaml").write_text(text.replace(old, new))
        assert judged(tmp_path / "wrong.yaml") != 0, new


def test_every_file_is_in_the_kustomization_or_says_who_reads_it() -> None:
    named = {*kustomization()["resources"], "kustomization.yaml", "prometheus-adapter.yaml", "loadgen"}
    assert {path.name for path in K8S.iterdir()} == named


def test_kustomize_puts_them_together(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        lacking("kubectl", KUBECTL, in_ci=False)
    done = run(kubectl, "kustomize", K8S)
    assert done.code == 0, done.err
    (tmp_path / "all.yaml").write_text(done.out)
    assert judged(tmp_path / "all.yaml") == 0
    made = documents(done.out)
    assert {each["kind"] for each in made} == set(objects())
    assert {each["metadata"]["namespace"] for each in made} == {kustomization()["namespace"]}
    (image,) = kustomization()["images"]
    assert f"image: {image['newName']}:{image['newTag']}\n" in done.out


def test_the_manifests_agree_with_each_other_and_with_the_image() -> None:
    assert faults(objects()) == []


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (lambda o: pod(o)["securityContext"].update(runAsUser=0), "runs as the image does"),
        (lambda o: pod(o)["securityContext"].pop("runAsNonRoot"), "runs as nobody"),
        (lambda o: pod(o)["securityContext"].pop("seccompProfile"), "has the usual system calls"),
        (lambda o: pod(o).pop("automountServiceAccountToken"), "has no token"),
        (lambda o: container(o)["securityContext"].pop("allowPrivilegeEscalation"), "gets no more rights"),
        (lambda o: container(o)["securityContext"].update(capabilities={}), "keeps no capability"),
        (lambda o: container(o)["securityContext"].pop("readOnlyRootFilesystem"), "writes nowhere"),
        (lambda o: container(o)["resources"].pop("limits"), "has bounded memory"),
        (
            lambda o: container(o)["env"].append({"name": "GATEWAY_BACKEND_API_KEY", "value": "k"}),
            "secrets come by reference",
        ),
        (
            lambda o: o["ConfigMap"].update(data={"gateway.toml": "admin_port = 9091\nbackend_api_key = 'k'"}),
            "no secret is in the file",
        ),
        (lambda o: container(o)["livenessProbe"]["httpGet"].update(path="/ready"), "lives by /health"),
        (lambda o: container(o)["readinessProbe"]["httpGet"].update(path="/health"), "is ready by /ready"),
        (lambda o: o["Service"]["spec"].update(selector={"app": "x"}), "is found by its Service"),
        (lambda o: o["Service"]["spec"]["ports"][0].update(targetPort="web"), "is served at its port"),
        (lambda o: o["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"].update(name="x"), "is what is scaled"),
        (lambda o: container(o)["volumeMounts"].pop(0), "has its settings mounted"),
        (lambda o: o["NetworkPolicy"]["spec"]["ingress"][0].update(ports=[{"port": 80}]), "may be reached there"),
        (
            lambda o: o["Service"]["spec"]["ports"].append({"name": "admin", "port": 9091, "targetPort": "admin"}),
            "offers operators' paths to no client",
        ),
    ],
)  # fmt: skip
def test_each_rule_can_be_broken(breaks: Callable[[Objects], object], told: str) -> None:
    broken = copy.deepcopy(objects())
    breaks(broken)
    assert faults(broken) == [told]


def checked(text: str, folder: Path) -> tuple[int, str]:
    """The pod's settings file, its environment with resolved references, and the image's command."""
    (folder / "gateway.toml").write_text(text)
    box = container(objects())
    given = {variable["name"]: variable.get("value", "") for variable in box["env"]}
    given |= {"GATEWAY_REDIS_URL": "redis://:s3cret@redis:6379/0"}
    assert Path(given["GATEWAY_CONFIG"]).name == "gateway.toml"
    given["GATEWAY_CONFIG"] = str(folder / "gateway.toml")
    assert not {"command", "args"} & set(box), "the image's own are meant"
    done = check_config(["python", "-m", "proxy"], environment() | given)
    assert "s3cret" not in done.said
    return done.code, done.said


def test_the_gateway_takes_the_settings_and_drains_within_the_pod_s_grace(tmp_path: Path) -> None:
    made = objects()
    code, said = checked(settings_file(made), tmp_path)
    assert code == 0, said
    grace = pod(made)["terminationGracePeriodSeconds"]
    assert grace_is_enough(grace, said)
    assert not grace_is_enough(30, said)
    delay = printed(said).drain_delay
    probe = container(made)["readinessProbe"]
    assert delay >= probe["periodSeconds"] * probe["failureThreshold"], "it would be gone before that is known"


def test_a_setting_that_is_none_is_refused(tmp_path: Path) -> None:
    code, said = checked(settings_file(objects()).replace("queue_limit", "queue_limits"), tmp_path)
    assert code == 2
    assert "queue_limits" in said


async def test_its_probes_ask_what_the_gateway_answers(engine: Engine) -> None:
    box = container(objects())
    paths = [box[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
    async with gateway(engine) as app:
        assert [(await get(app.url, path)).status for path in paths] == [200, 200, 200]
    async with gateway("http://127.0.0.1:9") as app:
        assert [(await get(app.url, path)).status for path in paths] == [200, 200, 503]


async def test_the_autoscaler_s_metric_is_one_that_the_adapter_makes_of_one_that_the_gateway_has(
    engine: Engine,
) -> None:
    (adapter,) = documents((K8S / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    metrics = objects()["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (wanted,) = [metric["pods"]["metric"]["name"] for metric in metrics if metric["type"] == "Pods"]
    series = re.match(r"\w+", rule["seriesQuery"])
    assert series is not None
    assert rule["name"]["as"] == wanted
    assert re.match(rule["name"]["matches"], series[0])
    async with gateway(engine) as app:
        page = (await get(app.url, "/metrics")).body.decode()
    assert f"\n{series[0]} 0\n" in page

"""The load generator's Indexed Job: its schema, rules across objects, its arguments as the program reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from loadgen.cli.main import parser_for
from loadgen.cli.run import arrivals_of
from loadgen.cli.runs.machines import INDEX, check_machines
from tests.kit.missing import KUBECTL, lacking
from tests.ops.kit import OPS, ROOT, documents, run, tool

FOLDER = OPS / "k8s" / "loadgen"


def manifest(name: str) -> dict[str, Any]:
    (found,) = documents((FOLDER / name).read_text())
    assert isinstance(found, dict)
    return found


def container() -> dict[str, Any]:
    (found,) = manifest("job.yaml")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def test_every_manifest_keeps_to_its_schema() -> None:
    files = [FOLDER / name for name in manifest("kustomization.yaml")["resources"]]
    assert {path.suffix for path in files} == {".yaml"}
    assert run(tool("kubernetes-validate"), "--strict", "--quiet", *files).code == 0


def test_kustomize_puts_them_together() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        lacking("kubectl", KUBECTL, in_ci=False)
    done = run(kubectl, "kustomize", FOLDER)
    assert done.code == 0, done.err
    assert "image: registry.example/loadgen:0.1.0\n" in done.out


@pytest.mark.parametrize("index", range(4))
def test_each_pod_s_command_is_one_machine_of_the_run(index: int) -> None:
    args = parser_for(["run"]).parse_args(container()["args"])
    check_machines(args, {INDEX: str(index)})
    assert args.machine == index
    schedule, _ = arrivals_of(args)
    assert schedule.open_loop


def test_the_objects_agree_on_the_number_of_pods_the_name_of_pod_0_and_the_port() -> None:
    job, service, network = (manifest(f"{name}.yaml") for name in ("job", "service", "network"))
    args = parser_for(["run"]).parse_args(container()["args"])
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == args.machines
    assert spec["backoffLimit"] == 0
    assert args.meet == (
        f"{job['metadata']['name']}-0.{pod['subdomain']}",
        container()["ports"][0]["containerPort"],
    )
    assert service["metadata"]["name"] == pod["subdomain"]
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    labels = spec["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == network["spec"]["podSelector"]["matchLabels"] == labels
    (ingress,) = network["spec"]["ingress"]
    assert ingress["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert [port["port"] for port in ingress["ports"]] == [container()["ports"][0]["name"]]


def test_a_pod_has_no_rights_and_writes_only_its_results() -> None:
    pod, box = manifest("job.yaml")["spec"]["template"]["spec"], container()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in box["resources"]["limits"]
    (mount,) = box["volumeMounts"]
    args = parser_for(["run"]).parse_args(box["args"])
    assert args.result_dir == mount["mountPath"]
    assert all(variable.get("value", mount["mountPath"]).startswith(mount["mountPath"]) for variable in box["env"])


def test_the_image_is_linted_and_copies_only_what_its_ignore_file_lets_through(tmp_path: Path) -> None:
    text = (FOLDER / "Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text(text)
    assert run(tool("hadolint"), "--no-color", tmp_path / "Dockerfile").said == ""
    kept = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {
        word
        for line in text.splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    assert (
        f"useradd --uid {manifest('job.yaml')['spec']['template']['spec']['securityContext']['runAsUser']}" in text
    )

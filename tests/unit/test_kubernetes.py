"""The manifests are what Kubernetes reads, and agree with the code they run."""

from __future__ import annotations

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from gateway.settings import Settings
from tests.kit.process import ROOT

VERSION = "1.31"
FOLDER = ROOT / "deploy" / "kubernetes"
OBJECTS: list[dict[str, Any]] = [
    one for file in sorted(FOLDER.glob("*.yaml")) if file.name != "kustomization.yaml"
    for one in yaml.safe_load_all(file.read_text())
]  # fmt: skip
WORKLOADS = [one for one in OBJECTS if one["kind"] in ("Deployment", "StatefulSet")]


def named(kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pod(workload: dict[str, Any]) -> Any:
    """What its pods are."""
    return workload["spec"]["template"]["spec"]


def environment(workload: dict[str, Any]) -> dict[str, str | None]:
    """The variables of its one container."""
    (container,) = pod(workload)["containers"]
    return {one["name"]: one.get("value") for one in container.get("env", [])}


@pytest.mark.parametrize("one", OBJECTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_kubernetes_knows_every_field(one: dict[str, Any]) -> None:
    kubernetes_validate.validate(one, VERSION, strict=True)


def test_every_file_is_part_of_it_and_nothing_else() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    files = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {one for one in listed if one.endswith(".yaml")}
    for one in listed:
        assert (FOLDER / one).exists(), one


def test_the_nodes_understand_their_variables() -> None:
    sent = {
        name: (value or "").replace("$(POD_IP)", "10.1.2.3")
        for name, value in environment(named("Deployment", "gateway")).items()
    }
    settings = Settings.from_env(sent, lambda: "pod")
    # What a drain may take: HAProxy's look, the window, and what the hook waits.
    hook = 2
    grace = pod(named("Deployment", "gateway"))["terminationGracePeriodSeconds"]
    assert hook + 4 + settings.drain_seconds < grace


def test_haproxy_understands_its_variables() -> None:
    cfg = (ROOT / "haproxy" / "haproxy.cfg").read_text()
    for name in environment(named("Deployment", "haproxy")):
        assert name == "NAMESPACE" or f"${{{name}" in cfg or f"defined({name})" in cfg, name
    (volume,) = (one for one in pod(named("Deployment", "haproxy"))["volumes"] if "configMap" in one)
    generated = yaml.safe_load((ROOT / "haproxy" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generated == [{"name": volume["configMap"]["name"], "files": ["haproxy.cfg", "drain.pl"]}]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one["metadata"]["name"])
def test_a_pod_may_do_no_more_than_it_must(workload: dict[str, Any]) -> None:
    spec = pod(workload)
    assert spec["enableServiceLinks"] is False, "a Service called gateway would set GATEWAY_PORT to a tcp:// address"
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip


def test_services_and_policies_find_their_pods() -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in WORKLOADS]
    ports = {port["name"] for one in WORKLOADS for box in pod(one)["containers"] for port in box["ports"]}
    for one in OBJECTS:
        spec = one["spec"]
        match one["kind"]:
            case "Service":
                assert spec["selector"] in labels
                assert {port["targetPort"] for port in spec["ports"]} <= ports
            case "PodDisruptionBudget":
                assert spec["selector"]["matchLabels"] in labels
            case "NetworkPolicy":
                assert spec["podSelector"]["matchLabels"] in labels


def test_monitors_find_their_services() -> None:
    services = {str(one["metadata"].get("labels")): one for one in OBJECTS if one["kind"] == "Service"}
    for monitor in yaml.safe_load_all((FOLDER / "monitoring" / "monitors.yaml").read_text()):
        service = services[str(monitor["spec"]["selector"]["matchLabels"])]
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
            assert endpoint["path"] == "/metrics"

"""The Helm chart renders to objects that Kubernetes reads, and to the same cluster as the kustomization."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from gateway.settings import Settings
from tests.helm import RenderError, render
from tests.kit.process import ROOT
from tests.unit.test_alerts import GROUPS
from tests.unit.test_kubernetes import OBJECTS as KUSTOMIZED
from tests.unit.test_kubernetes import VERSION

CHART = ROOT / "deploy" / "helm" / "websocket-gateway"
SCHEMA = Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
LEAST: dict[str, Any] = {"haproxy": {"cookieKey": "k"}}
FULL: dict[str, Any] = {
    "image": {"repository": "registry.example/gateway", "tag": "1"},
    "gateway": {
        "secrets": {"GATEWAY_API_KEY": 'a "key"'}, "settings": {"GATEWAY_ORIGINS": "https://app.example"},
        "topics": '[[topic]]\npattern = "*"\n', "keysSecret": "keys",
    },
    "autoscaling": {"enabled": True},
    "haproxy": {"existingSecret": "lb", "settings": {"LB_ORIGINS": "https://app.example"}},
    "redis": {"url": "redis+sentinel://s1,s2,s3/gateway"},
    "monitoring": {"enabled": True},
}  # fmt: skip


def objects(values: dict[str, Any]) -> list[dict[str, Any]]:
    assert not list(SCHEMA.iter_errors(values))
    return render(CHART, values, "live", "prod")


def named(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [one] = [one for one in found if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return one


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one.get("value") for one in container["env"]}


@pytest.mark.parametrize("values", [LEAST, FULL], ids=["least", "full"])
def test_kubernetes_knows_every_field(values: dict[str, Any]) -> None:
    for one in objects(values):
        if not one["apiVersion"].startswith("monitoring.coreos.com"):
            kubernetes_validate.validate(one, VERSION, strict=True)


def test_the_least_values_give_the_same_objects_as_the_kustomization() -> None:
    def kinds(found: list[dict[str, Any]]) -> set[tuple[str, str]]:
        made = {"Secret", "ConfigMap"}  # kubectl or kustomize makes these
        return {(o["kind"], o["metadata"]["name"].removeprefix("live-")) for o in found if o["kind"] not in made}

    assert kinds(objects(LEAST)) == kinds(KUSTOMIZED)


def test_the_nodes_understand_their_variables() -> None:
    found = objects(FULL)
    gateway = named(found, "Deployment", "live-gateway")
    sent = {name: (value or "").replace("$(POD_IP)", "10.1.2.3") for name, value in environment(gateway).items()}
    settings = Settings.from_env(sent, lambda: "pod")
    assert settings.redis_url == FULL["redis"]["url"]
    assert settings.drain_seconds + 6 < gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert named(found, "Secret", "live-gateway")["stringData"] == FULL["gateway"]["secrets"]
    assert named(found, "ConfigMap", "live-rules")["data"]["topics.toml"] == FULL["gateway"]["topics"]


def test_haproxy_has_a_cookie_key_of_its_own_and_understands_its_variables() -> None:
    cfg = (ROOT / "haproxy" / "haproxy.cfg").read_text()
    haproxy = named(objects(LEAST), "Deployment", "live-haproxy")
    for name in environment(haproxy):
        assert f"${{{name}" in cfg or f"defined({name})" in cfg, name
    with pytest.raises(RenderError, match=r"set haproxy\.cookieKey"):
        objects({})
    data = named(objects(LEAST), "ConfigMap", "live-haproxy")["data"]
    assert data == {name: (ROOT / "haproxy" / name).read_text() for name in ("haproxy.cfg", "drain.pl")}


def test_a_changed_secret_or_configuration_restarts_the_pods() -> None:
    def checksums(values: dict[str, Any]) -> list[dict[str, str]]:
        found = [one for one in objects(values) if one["kind"] == "Deployment"]
        return [one["spec"]["template"]["metadata"]["annotations"] for one in found]

    before = checksums(LEAST)
    after = checksums({"haproxy": {"cookieKey": "k"}, "gateway": {"secrets": {"GATEWAY_API_KEY": "k"}}})
    assert before[0] != after[0] and before[1] == after[1]
    assert checksums({"haproxy": {"cookieKey": "other"}})[1] != before[1]


def test_the_rules_of_prometheus_are_those_of_the_file() -> None:
    assert named(objects(FULL), "PrometheusRule", "live-gateway")["spec"]["groups"] == GROUPS


def test_the_schema_names_each_value_and_refuses_others() -> None:
    assert not list(SCHEMA.iter_errors(DEFAULTS))

    def described(node: Any) -> set[str]:
        parts = node["properties"].items()
        return {f"{name}.{more}" for name, one in parts for more in (described(one) if "properties" in one else {""})}

    def given(node: Any) -> set[str]:
        return {
            f"{name}.{more}"
            for name, one in node.items()
            for more in (given(one) if isinstance(one, dict) and one and name != "resources" else {""})
        }

    assert described(SCHEMA.schema) - {"global."} == given(DEFAULTS)
    for wrong in ({"gateway": {"replica": 1}}, {"gateway": {"settings": {"PORT": "1"}}}, {"haproxy": {"cookieKey": 3}}):
        assert list(SCHEMA.iter_errors(wrong)), wrong


def test_the_admin_socket_is_asked_to_close_each_public_session(tmp_path: Any) -> None:
    asked = tmp_path / "asked"
    socket = tmp_path / "s"
    server = subprocess.Popen(["perl", "-e", SERVER, str(socket), str(asked)])
    try:
        while not socket.exists():
            assert server.poll() is None
        done = subprocess.run(
            ["perl", str(ROOT / "haproxy" / "drain.pl"), str(socket), "0"], capture_output=True, text=True, check=True
        )
    finally:
        server.kill()
        server.wait()
    assert done.stdout == "closed 2 sockets\n"
    assert re.findall(r"0x\w+", asked.read_text()) == ["0xa1", "0xa3"]


# HAProxy's admin socket, with two public sessions and one internal.
SERVER = r"""
use IO::Socket::UNIX;
my ($path, $asked) = @ARGV;
my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 9) or die;
while (my $client = $listener->accept) {
    my $command = <$client>;
    open(my $file, ">>", $asked); print $file $command; close $file;
    if ($command =~ /^show sess/) {
        print $client "$_: proto=tcpv4 src=127.0.0.1:1 fe=", ($_ eq "0xa2" ? "internal" : "public"), " be=gw srv=gw1\n"
            for qw(0xa1 0xa2 0xa3);
    }
    close $client;
}
"""

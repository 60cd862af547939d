"""Each Redis that this project starts has a memory limit, and rejects writes at it instead of evicting keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.dev import DevCluster
from stack import configuration
from stack.place import Place
from tests.kit.process import ROOT

CONF = (ROOT / "stack" / "redis.conf").read_text().splitlines()


def test_the_configuration_of_both_stacks_has_a_limit_and_evicts_nothing() -> None:
    assert "maxmemory 1gb" in CONF
    assert "maxmemory-policy noeviction" in CONF


def test_each_redis_of_compose_has_the_configured_limit() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    servers = [service for name, service in services.items() if name.startswith("redis") and name != "redis-cluster"]
    assert len(servers) == 7
    for server in servers:
        assert "--maxmemory ${REDIS_MAXMEMORY:-1gb}" in " ".join(server["command"])
        assert any("redis.conf" in volume for volume in server["volumes"])


def test_the_local_stack_passes_the_limit_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Place, "api_key", lambda _place: "key")
    place = Place(tmp_path, 18080, 18404, 19001)
    assert "--maxmemory 1gb" in configuration.supervisord(place, 1)
    monkeypatch.setenv("REDIS_MAXMEMORY", "3gb")
    assert "--maxmemory 3gb" in configuration.supervisord(place, 1)


def test_the_redis_of_kubernetes_has_half_of_its_containers_memory() -> None:
    path = ROOT / "deploy" / "kubernetes" / "redis.yaml"
    redis = next(one for one in yaml.safe_load_all(path.read_text()) if one["kind"] == "StatefulSet")
    [container] = redis["spec"]["template"]["spec"]["containers"]
    words = " ".join(container["args"])
    assert "--maxmemory 1gb" in words and "--maxmemory-policy noeviction" in words
    assert container["resources"]["limits"]["memory"] == "2Gi"


def test_the_redis_of_gateway_dev_has_a_limit(tmp_path: Path) -> None:
    words = " ".join(DevCluster(data=tmp_path)._redis_command("valkey-server"))
    assert "--maxmemory 256mb" in words and "--maxmemory-policy noeviction" in words

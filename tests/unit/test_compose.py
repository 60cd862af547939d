"""compose.yaml, and the settings that `make up` gives it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.connections.admission import FEW_FILES
from gateway.core import topic_rules
from gateway.core.topic_rules import Need
from gateway.node.configuration import load_rules
from gateway.settings import SECRETS, Settings
from stack.compose import CLUSTER
from stack.place import Place, StackError
from tests.kit.process import ROOT

FILE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
SERVERS = [name for name in SERVICES if re.fullmatch(r"redis-\d", name)]


def test_a_plain_up_starts_neither_a_redis_cluster_nor_monitoring() -> None:
    plain = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert plain == {"redis", "gateway", "haproxy"}


def test_the_cluster_is_made_of_six_servers_each_with_a_volume_of_its_own() -> None:
    script = (ROOT / "stack" / "cluster.sh").read_text()
    assert len(SERVERS) == 6 and f"servers='{' '.join(SERVERS)}'" in script
    assert SERVICES["redis-cluster"]["depends_on"].keys() == set(SERVERS)
    assert len({SERVICES[name]["volumes"][0] for name in SERVERS}) == 6
    assert {SERVICES[name]["volumes"][0].partition(":")[0] for name in SERVERS} <= FILE["volumes"].keys()
    assert all(SERVICES[name]["command"][2:4] == ["serve", name] for name in SERVERS)


def test_nodes_wait_for_their_redis_and_their_settings_name_existing_servers() -> None:
    gateway = SERVICES["gateway"]
    assert {name: one["required"] for name, one in gateway["depends_on"].items()} == {
        "redis": False, "redis-cluster": False,
    }  # fmt: skip
    hosts = CLUSTER["GATEWAY_REDIS_URL"].removeprefix("redis+cluster://").split(",")
    assert set(hosts) <= set(SERVERS)
    for variable in CLUSTER:
        assert f"${{{variable}:-" in str(FILE), variable


def test_redis_is_one_or_a_cluster() -> None:
    assert Place.from_env({}).redis == "single"
    assert Place.from_env({"REDIS": "cluster"}).redis == "cluster"
    with pytest.raises(StackError, match="REDIS must be single or cluster"):
        Place.from_env({"REDIS": "many"})


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "there is no docker command"),
        ('test "$1" = --version', "docker has no compose command"),
        ('test "$1" != info || { echo "Cannot connect to the Docker daemon"; exit 1; }', "no Docker engine answers"),
    ],
)
@pytest.mark.parametrize("command", [["up", "3"], ["restart"], ["down"], ["status"], ["logs"]], ids=" ".join)
def test_compose_without_an_engine_is_one_sentence(
    tmp_path: Path, script: str | None, says: str, command: list[str]
) -> None:
    if script is not None:
        (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "docker").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "stack", *command], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": str(tmp_path), "STACK": "compose"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"STACK=compose needs Docker with Compose, and {says}: start it, or use STACK=local.\n"


# The image sets HOST; each container has its own name and address; Docker chooses HAProxy's address.
OF_THE_CONTAINER = {"HOST", "PORT", "ADVERTISE", "NODE", "TRUSTED_PROXIES"}


def test_compose_passes_every_setting_and_the_file_of_every_secret() -> None:
    settings = {field.name.upper() for field in fields(Settings)}
    files = {f"{name.upper()}_FILE" for name in SECRETS - {"redis_url"}}  # Compose always gives the URL itself
    passed = SERVICES["gateway"]["environment"]
    expected = {f"GATEWAY_{name}" for name in (settings | files) - OF_THE_CONTAINER}
    assert passed.keys() - {"GATEWAY_TRUSTED_PROXIES"} == expected
    assert all(value.startswith(f"${{{name}") for name, value in passed.items() if name in expected)


def test_each_service_has_a_memory_limit_and_those_with_clients_many_descriptors() -> None:
    assert [name for name, service in SERVICES.items() if "mem_limit" not in service] == []
    assert SERVICES["gateway"]["ulimits"]["nofile"] >= FEW_FILES
    assert SERVICES["haproxy"]["ulimits"]["nofile"] >= 2 * FEW_FILES


def test_the_starter_rules_deny_what_they_do_not_name() -> None:
    folder = re.search(r"NODE_FILES:-([^}]+)", SERVICES["gateway"]["volumes"][0])
    assert folder
    rules = load_rules(str(ROOT / folder[1] / "topics.toml"))
    assert not topic_rules.left_open(rules, load_rules(""))
    unnamed = rules.of("a-topic-that-no-rule-names")
    assert {unnamed.need(act) for act in topic_rules.ACTS} == {Need.NOBODY}

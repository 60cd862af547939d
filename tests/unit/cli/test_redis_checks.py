"""gateway.cli.redis_checks: what INFO and denied commands say, as sentences."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from gateway.cli.redis_checks import CLUSTER_PROBES, PROBES, WAIT_PROBES, denied, findings, rights
from tests.kit.process import ROOT

GOOD: dict[str, Any] = {
    "redis_version": "7.4.1", "role": "master", "used_memory": "1048576", "maxmemory": "104857600",
    "maxmemory_policy": "noeviction", "loading": "0", "aof_enabled": "1", "aof_last_write_status": "ok",
    "slave0": "ip=10.0.0.2,port=6379,state=online,offset=9,lag=1",
}  # fmt: skip


def judged(**changed: Any) -> dict[str, tuple[str, str]]:
    """The findings that have a remedy."""
    wanted = {name: changed.pop(name) for name in ("wait_replicas", "wait_fsync") if name in changed}
    return {one.about: (one.found, one.todo) for one in findings(GOOD | changed, **wanted) if one.todo}


def test_a_good_server_has_five_findings_and_no_remedy() -> None:
    found = list(findings(GOOD, wait_replicas=1, wait_fsync=True))
    assert [one.about for one in found] == ["version", "role", "memory", "persistence", "replicas"]
    assert [one.found for one in found][:3] == ["Redis 7.4.1", "master", "1 of 100 MiB used, noeviction"]
    assert not any(one.todo for one in found)
    assert next(iter(findings(GOOD | {"valkey_version": "8.1.0"}))).found == "Valkey 8.1.0"


@pytest.mark.parametrize(
    ("changed", "about", "found"),
    [
        ({"redis_version": "6.0.16"}, "version", "Redis 6.0.16, but 6.2 is the least"),
        ({"redis_version": "7.0.1", "wait_fsync": True}, "version", "Redis 7.0.1, but 7.2 is the least"),
        ({"role": "slave"}, "role", "slave, but nodes need a master"),
        ({"maxmemory": "0"}, "memory", "1 MiB used, and maxmemory is not set: Redis grows until the kernel ends it"),
        (
            {"maxmemory_policy": "allkeys-lru"}, "memory",
            "maxmemory-policy is allkeys-lru, with which a full Redis deletes messages and rows of nodes",
        ),
        ({"used_memory": str(90 << 20)}, "memory", "90 of 100 MiB used, more than 80%"),
        ({"aof_enabled": "0"}, "persistence", "appendonly is no: a restart of Redis loses messages"),
        ({"loading": "1"}, "persistence", "it is still loading its data"),
        ({"aof_last_write_status": "err"}, "persistence", "the last write to the AOF failed"),
        ({"rdb_last_bgsave_status": "err"}, "persistence", "the last snapshot failed"),
        ({"wait_replicas": 2}, "replicas", "1 online, but GATEWAY_WAIT_REPLICAS is 2"),
        ({"slave0": "ip=h,port=1,state=online,lag=11"}, "replicas", "h:1 is 11 s behind"),
        ({"slave0": {"ip": "h", "port": 1, "state": "wait_bgsave", "lag": 0}}, "replicas", "h:1 is wait_bgsave"),
    ],
)  # fmt: skip
def test_each_weakness_is_one_sentence(changed: dict[str, Any], about: str, found: str) -> None:
    weak = judged(**changed)
    assert weak.keys() == {about}
    assert weak[about][0] == found


def test_denied_commands_keys_and_channels_are_named_as_acl_rules() -> None:
    probes = ["CLIENT SETNAME n", "GET K", "SET K v", "PUBLISH K m", "WAITAOF 1 1 1"]
    answers = [
        NoPermissionError("this user has no permissions to run the 'client|setname' command"),
        NoPermissionError("User ann has no permissions to run the 'get' command"),
        NoPermissionError("this user has no permissions to access one of the keys used as arguments"),
        NoPermissionError("this user has no permissions to access one of the channels used as arguments"),
        ResponseError("unknown command 'WAITAOF'"),
    ]
    missing = denied(probes, answers)
    assert missing == (["client|setname", "get"], True, True)
    assert rights("gw:", *missing).found == "the user of the URL lacks +client|setname +get ~gw:* &gw:*"
    assert not rights("gw:", *denied(["GET K"], [b"QUEUED"])).todo


def test_the_probes_are_the_rights_of_the_shipped_user() -> None:
    line = next(one for one in (ROOT / "deploy/redis/users.acl").read_text().splitlines() if "user gateway" in one)
    shipped = {word[1:].partition("|")[0] for word in line.split() if word.startswith("+")}
    probed = {probe.split(" ")[0].lower() for probe in (*PROBES, *WAIT_PROBES, *CLUSTER_PROBES)}
    # MULTI and EXEC surround the probes, ASKING and CLUSTER concern redirections.
    assert shipped - {"multi", "exec", "asking", "cluster"} == probed

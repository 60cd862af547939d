"""life: a text that changes whenever Redis may have lost keys."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lua.steps import Steps


def life(steps: Steps) -> list[str]:
    """Run id, replication id, evicted keys; calls of FLUSHALL, FLUSHDB and SWAPDB."""
    with steps.nothing_done():
        text: bytes = steps.call("server_life", ["any key"])
    return text.decode().split(" ")


def test_a_life_names_the_process_and_its_history(steps: Steps) -> None:
    info: Any = steps.redis.info()
    found = life(steps)
    assert found[:3] == [info["run_id"], info["master_replid"], str(info["evicted_keys"])]
    assert len(found) == 6
    assert all(count.isdigit() for count in found[2:])


def test_a_life_goes_on_while_keys_are_written_and_deleted(steps: Steps) -> None:
    before = life(steps)
    steps.redis.set("any key", "x")
    assert life(steps) == before
    steps.redis.delete("any key")
    assert life(steps) == before


@pytest.mark.parametrize(("command", "part"), [("FLUSHALL", 3), ("FLUSHDB", 4), ("SWAPDB 0 1", 5)])
def test_a_command_that_drops_keys_begins_another_life(steps: Steps, command: str, part: int) -> None:
    before = life(steps)
    steps.redis.execute_command(*command.split())
    assert life(steps) == [*before[:part], str(int(before[part]) + 1), *before[part + 1 :]]


def test_evicted_keys_begin_another_life(steps: Steps) -> None:
    before = life(steps)
    steps.redis.set("any key", "x")
    steps.redis.config_set("maxmemory-policy", "allkeys-lru")
    steps.redis.config_set("maxmemory", 1)
    try:
        steps.redis.get("any key")
    finally:
        steps.redis.config_set("maxmemory", 0)
        steps.redis.config_set("maxmemory-policy", "noeviction")
    assert life(steps) == [*before[:2], str(int(before[2]) + 1), *before[3:]]


def test_a_new_replication_id_begins_another_life(steps: Steps) -> None:
    before = life(steps)
    steps.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    steps.redis.execute_command("REPLICAOF", "NO", "ONE")
    after = life(steps)
    assert after[1] != before[1]
    assert (after[0], after[2:]) == (before[0], before[2:])

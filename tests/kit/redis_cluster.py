"""A Redis Cluster: three masters with a replica each, and methods for faults and moves of slots."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis as redis_py

from gateway.broker.slot_map import SLOTS, slot_of
from tests.kit.process import Closing, free_cluster_port, program
from tests.kit.redis import Redis
from tests.kit.waiting import until

MASTERS = 3
NODE_TIMEOUT_MS = 1500  # without an answer for so long, a server is down in the others' eyes
CHANGE_SECONDS = 60.0  # until all are of one mind after a change
OPTIONS = {
    "cluster-enabled": "yes", "cluster-node-timeout": str(NODE_TIMEOUT_MS), "repl-diskless-sync-delay": "0",
    # Until its master's first ping, after ten seconds by default, a replica is not listed.
    "repl-ping-replica-period": "1",
    # What docs/how-to/run-the-cluster.md advises: one shard's loss is not the others', and a server that is
    # cut off takes nothing.
    "cluster-require-full-coverage": "no", "cluster-allow-pubsubshard-when-down": "no",
    # A replica is promoted however long it was without its master: the test kills masters again and again.
    "cluster-replica-validity-factor": "0",
}  # fmt: skip


class RedisCluster(Closing):
    """Six servers. Any may be killed; it comes back as a replica."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.servers: list[Redis] = []
        try:
            for at in range(2 * MASTERS):
                place = folder / f"shard-{at + 1}"
                place.mkdir()
                self.servers.append(self._stack.enter_context(Redis(place, port=free_cluster_port(), more=OPTIONS)))
            self.url = f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in self.servers[:3])}"
            self._admin("create", *self._addresses(), "--cluster-replicas", "1")
            self.until_whole()
        except BaseException:
            self.close()
            raise

    def masters(self) -> list[Redis]:
        """The servers that have slots."""
        ports = {row["port"] for row in self._rows()}
        return [server for server in self.servers if server.port in ports]

    def owner(self, slot: int) -> Redis:
        """The master that has `slot`."""
        port = _port_of(slot, self._rows())
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, killed: Redis) -> None:
        """Kill a master; returns when its replica has its slots."""
        killed.kill()
        until(lambda: self._covered_without(killed.port), CHANGE_SECONDS, "a replica has taken over")

    def move(self, slots: Iterable[int], by: int = 1, amid: Callable[[int], object] = lambda _slot: None) -> None:
        """Move each of `slots`, live, from its master to the one that is `by` places after it in `masters`.

        `amid` is called when a slot's keys are with the new master and the slot itself is not: the old master
        answers commands for it with ASK. `redis-cli --cluster reshard` does the same, but cannot move chosen slots.
        """
        masters = self.masters()
        rows = self._rows()
        by_port = {server.port: server for server in masters}
        owners = {slot: by_port[_port_of(slot, rows)] for slot in slots}
        with contextlib.ExitStack() as stack:
            talk = {server.port: stack.enter_context(_connection(server)) for server in masters}
            ids = {server.port: talk[server.port].execute_command("CLUSTER MYID") for server in masters}
            for slot, owner in owners.items():
                source, target = owner.port, masters[(masters.index(owner) + by) % len(masters)].port
                talk[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
                talk[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
                while keys := talk[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                    talk[source].execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
                amid(slot)
                for port in dict.fromkeys((target, source, *talk)):
                    talk[port].execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])

    def until_whole(self) -> None:
        """Wait until all servers agree, and each master has a replica that has all it has."""
        until(self._whole, CHANGE_SECONDS, "the cluster is whole")

    def flush(self) -> None:
        """Have it forget everything."""
        for server in self.masters():
            server.flush()

    def published(self) -> dict[int, int]:
        """How many messages each master has published, by port, since it runs."""
        found = {}
        for server in self.masters():
            statistics = server.cli("INFO", "commandstats")
            found[server.port] = statistics.get("cmdstat_spublish", {}).get("calls", 0)
        return found

    # ---- within

    def _addresses(self) -> list[str]:
        return [f"127.0.0.1:{server.port}" for server in self.servers]

    def _admin(self, what: str, *words: str) -> None:
        command = [program("redis-cli"), "--cluster", what, *words, "--cluster-yes"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"redis-cli --cluster {what}: {done.stdout[-500:]}{done.stderr[-500:]}"

    def _living(self) -> Iterator[Redis]:
        return (server for server in self.servers if server.process.alive)

    def _rows(self, server: Redis | None = None) -> list[dict[str, int]]:
        """Who has what, in the eyes of one of those that live."""
        with _connection(server or next(self._living())) as connection:
            rows: Any = connection.execute_command("CLUSTER", "SLOTS")
        return [{"first": row[0], "last": row[1], "port": row[2][1], "replicas": len(row) - 3} for row in rows]

    def _covered_without(self, port: int) -> bool:
        try:
            views = [self._rows(server) for server in self._living()]
        except redis_py.RedisError:
            return False
        return all(
            sum(row["last"] - row["first"] + 1 for row in rows) == SLOTS and port not in {row["port"] for row in rows}
            for rows in views
        )

    def _whole(self) -> bool:
        try:
            views = [self._rows(server) for server in self.servers]
            states = [server.cli("CLUSTER", "INFO") for server in self.servers]
            roles = [server.cli("ROLE") for server in self.servers]
        except redis_py.RedisError:
            return False
        one = sorted((row["first"], row["last"], row["port"]) for row in views[0])
        agreed = all(sorted((row["first"], row["last"], row["port"]) for row in view) == one for view in views)
        replicas = all(row["replicas"] == 1 for view in views for row in view)
        synced = all(role[0] == "master" or role[3] == "connected" for role in roles)
        healthy = all("cluster_state:ok" in state for state in states)
        return agreed and replicas and synced and healthy

    def close(self) -> None:
        """End all and leave nothing."""
        self._stack.close()


def _port_of(slot: int, rows: Iterable[dict[str, int]]) -> int:
    return next(row["port"] for row in rows if row["first"] <= slot <= row["last"])


def _connection(server: Redis) -> redis_py.Redis:
    return redis_py.Redis(port=server.port, decode_responses=True, socket_timeout=10)


def slots_around(names: Sequence[str], count: int) -> list[int]:
    """So many slots, in parts of one size around those of `names`."""
    each = count // len(names)
    found = dict.fromkeys((slot_of(name) - each // 2 + at) % SLOTS for name in names for at in range(each))
    return list(found)

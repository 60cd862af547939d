"""A Redis Cluster: three masters, a replica of each, and what happens to them."""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis as redis_py

from tests.cluster import Closing, Redis, program
from tests.deadlines import until
from tests.processes import free_port

MASTERS = 3
NODE_TIMEOUT_MS = 1500  # without an answer for so long, a server is down in the others' eyes
CHANGE_SECONDS = 60.0  # until all are of one mind after a change
OPTIONS = {
    "cluster-enabled": "yes", "cluster-node-timeout": str(NODE_TIMEOUT_MS), "repl-diskless-sync-delay": "0",
    # What docs/operations.md advises: one shard's loss is not the others', and who is cut off takes nothing.
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
                self.servers.append(self._stack.enter_context(Redis(place, port=_port(), more=OPTIONS)))
            self.url = f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in self.servers[:3])}"
            self._admin("create", *self._addresses(), "--cluster-replicas", "1")
            self.until_whole()
        except BaseException:
            self.close()
            raise

    def masters(self) -> list[Redis]:
        """The servers that have slots."""
        return [server for server in self.servers if any(row["port"] == server.port for row in self._rows())]

    def owner(self, slot: int) -> Redis:
        """The master that has `slot`."""
        port = next(row["port"] for row in self._rows() if row["first"] <= slot <= row["last"])
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, killed: Redis | None = None) -> Redis:
        """Kill a master, by chance if none is named; returns it when its replica has its slots."""
        killed = killed or random.choice(self.masters())
        killed.kill()
        until(lambda: self._covered_without(killed.port), CHANGE_SECONDS, "a replica has taken over")
        return killed

    def move(self, slots: int, source: Redis, target: Redis) -> None:
        """Move so many slots, live, as an operator does."""
        own = source.cli("CLUSTER", "MYID"), target.cli("CLUSTER", "MYID")
        self._admin(
            "reshard", f"127.0.0.1:{source.port}", "--cluster-from", own[0], "--cluster-to", own[1],
            "--cluster-slots", str(slots),
        )  # fmt: skip

    def until_whole(self) -> None:
        """Wait until all servers agree, and each master has a replica that has all it has."""
        until(self._whole, CHANGE_SECONDS, "the cluster is whole")

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
            sum(row["last"] - row["first"] + 1 for row in rows) == 16_384 and port not in {row["port"] for row in rows}
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


def _connection(server: Redis) -> redis_py.Redis:
    return redis_py.Redis(port=server.port, decode_responses=True, socket_timeout=10)


def _port() -> int:
    """A free port whose companion, 10,000 above, is no port of outgoing connections: there servers speak together."""
    while (port := free_port()) > 22_000:
        pass
    return port

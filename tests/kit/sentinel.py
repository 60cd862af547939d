"""A Redis master, its replicas and their Sentinels."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import redis as redis_py

from tests.kit.process import HERE, Closing, Host, Process, clean_environment, free_port, program
from tests.kit.redis import Redis
from tests.kit.waiting import until

SERVICE = "gateway"
SENTINELS = 3
REPLICAS = 2
DOWN_MS = 3000  # without an answer for so long, a server is down in a Sentinel's eyes
RETURN_SECONDS = 60.0  # until a server that comes back is a replica again, and has all


class _Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Sentinels(Closing):
    """Three servers and three Sentinels. Any server may be killed; the Sentinels stay."""

    def __init__(
        self, folder: Path, *, hosts: Sequence[Host] = (HERE,) * (1 + REPLICAS),
        watcher_hosts: Sequence[Host] = (HERE,) * SENTINELS, more: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._stack = contextlib.ExitStack()
        self._more = more or {}
        self.watchers: list[Process] = []
        self._watched = [_Address(host.address, free_port()) for host in watcher_hosts]
        self.url = f"redis+sentinel://{','.join(map(str, self._watched))}/{SERVICE}"
        try:
            master = self._server(folder / "server-1", hosts[0])
            self.servers = [master]
            for at, host in enumerate(hosts[1:], 2):
                self.servers.append(self._server(folder / f"server-{at}", host, master))
            for host, address in zip(watcher_hosts, self._watched, strict=True):
                self._watch(folder, host, address.port, master)
            self.until_whole()
        except BaseException:
            self.close()
            raise

    def _server(self, folder: Path, host: Host, master: Redis | None = None) -> Redis:
        folder.mkdir()
        replicaof = {} if master is None else {"replicaof": f"{master.host.address} {master.port}"}
        more = {"repl-diskless-sync-delay": "0", **self._more, **replicaof}
        return self._stack.enter_context(Redis(folder, more=more, host=host))

    def _watch(self, folder: Path, host: Host, port: int, master: Redis) -> None:
        file = folder / f"sentinel-{port}.conf"
        file.write_text(
            f"bind {host.address}\nprotected-mode no\nport {port}\ndir {folder}\n"
            f"sentinel monitor {SERVICE} {master.host.address} {master.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
            f"sentinel parallel-syncs {SERVICE} {REPLICAS}\n"
        )
        command = [*host.enter, program("redis-server"), str(file), "--sentinel"]
        process = Process(f"sentinel-{port}", command, folder / f"sentinel-{port}.log", clean_environment())
        self._stack.callback(process.close)
        self.watchers.append(process)
        process.spawn()

    def master(self) -> Redis:
        """The server that the Sentinels call the master."""
        masters = {self._master_seen(by) for by in self._watched}
        assert len(masters) == 1, f"the Sentinels are not of one mind: {masters}"
        return next(server for server in self.servers if _address(server) in masters)

    def fail_over(self) -> Redis:
        """Kill the master; returns, when the Sentinels have agreed upon another, the one that was killed."""
        killed = self.master()
        killed.kill()
        self._until_not(_address(killed))
        return killed

    def promote(self) -> None:
        """Have a replica made the master, while the old one lives."""
        before = _address(self.master())
        self._sentinel(self._watched[0], "FAILOVER", SERVICE)
        self._until_not(before)

    def _until_not(self, before: _Address) -> None:
        until(lambda: before not in map(self._master_seen, self._watched), RETURN_SECONDS, "a new master")

    def until_whole(self) -> None:
        """Wait until the Sentinels know all servers, and the replicas have all that the master has."""
        until(self._whole, RETURN_SECONDS, "the replicas are back")

    def _whole(self) -> bool:
        try:
            roles = {_address(server): server.cli("ROLE") for server in self.servers}
            seen = [self._sentinel(by, "MASTER", SERVICE) for by in self._watched]
            others = [len(self._sentinel(by, "SENTINELS", SERVICE)) for by in self._watched]
        except redis_py.RedisError:
            return False
        # One that still conducts the last fail-over would not see the next.
        settled = all(one["flags"] == "master" and int(one["num-slaves"]) == REPLICAS for one in seen)
        masters = {_Address(one["ip"], int(one["port"])) for one in seen}
        follows = [
            address in masters
            if role[0] == "master"
            else _Address(role[1], int(role[2])) in masters and role[3] == "connected"
            for address, role in roles.items()
        ]
        return settled and len(masters) == 1 and all(follows) and set(others) == {SENTINELS - 1}

    def _master_seen(self, by: _Address) -> _Address:
        host, port = self._sentinel(by, "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return _Address(host, int(port))

    def _sentinel(self, by: _Address, *words: str) -> Any:
        with redis_py.Redis(by.host, by.port, decode_responses=True, socket_timeout=10) as connection:
            return connection.execute_command(f"SENTINEL {words[0]}", *words[1:])

    def close(self) -> None:
        """End all and leave nothing."""
        self._stack.close()


def _address(server: Redis) -> _Address:
    return _Address(server.host.address, server.port)

"""A Redis master, its replicas, and the Sentinels that watch them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import redis as redis_py

from tests.cluster import Closing, Redis, program
from tests.deadlines import until
from tests.processes import Process, clean_environment, free_port

SERVICE = "gateway"
SENTINELS = 3
REPLICAS = 2
DOWN_MS = 3000  # without an answer for so long, a server is down in a Sentinel's eyes
RETURN_SECONDS = 60.0  # until a server that comes back is a replica again, and has all


class Sentinels(Closing):
    """Three servers and three Sentinels. Any server may be killed; the Sentinels stay."""

    def __init__(self, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.watchers: list[Process] = []
        self._ports = [free_port() for _ in range(SENTINELS)]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self._ports)}/{SERVICE}"
        try:
            master = self._server(folder / "server-1")
            self.servers = [master]
            for at in range(REPLICAS):
                self.servers.append(self._server(folder / f"server-{at + 2}", master))
            for port in self._ports:
                self._watch(folder, port, master)
            self.until_whole()
        except BaseException:
            self.close()
            raise

    def _server(self, folder: Path, master: Redis | None = None) -> Redis:
        folder.mkdir()
        replicaof = {} if master is None else {"replicaof": f"127.0.0.1 {master.port}"}
        return self._stack.enter_context(Redis(folder, more={"repl-diskless-sync-delay": "0", **replicaof}))

    def _watch(self, folder: Path, port: int, master: Redis) -> None:
        file = folder / f"sentinel-{port}.conf"
        file.write_text(
            f"bind 127.0.0.1\nport {port}\ndir {folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
            f"sentinel parallel-syncs {SERVICE} {REPLICAS}\n"
        )
        command = [program("redis-server"), str(file), "--sentinel"]
        process = Process(f"sentinel-{port}", command, folder / f"sentinel-{port}.log", clean_environment())
        self._stack.callback(process.close)
        self.watchers.append(process)
        process.spawn()

    def master(self) -> Redis:
        """The server that the Sentinels call the master."""
        ports = {self._master_port(port) for port in self._ports}
        assert len(ports) == 1, f"the Sentinels are not of one mind: {ports}"
        return next(server for server in self.servers if server.port in ports)

    def fail_over(self) -> Redis:
        """Kill the master; returns, when the Sentinels have agreed upon another, the one that was killed."""
        killed = self.master()
        killed.kill()
        until(lambda: killed.port not in map(self._master_port, self._ports), RETURN_SECONDS, "a new master")
        return killed

    def promote(self) -> None:
        """Have a replica made the master, while the old one lives."""
        before = self.master().port
        self._sentinel(self._ports[0], "FAILOVER", SERVICE)
        until(lambda: before not in {self._master_port(port) for port in self._ports}, RETURN_SECONDS, "a new master")

    def until_whole(self) -> None:
        """Wait until the Sentinels know all servers, and the replicas have all that the master has."""
        until(self._whole, RETURN_SECONDS, "the replicas are back")

    def _whole(self) -> bool:
        try:
            roles = {server.port: server.cli("ROLE") for server in self.servers}
            seen = [self._sentinel(port, "MASTER", SERVICE) for port in self._ports]
            others = [len(self._sentinel(port, "SENTINELS", SERVICE)) for port in self._ports]
        except redis_py.RedisError:
            return False
        # One that still conducts the last fail-over would not see the next.
        settled = all(one["flags"] == "master" and int(one["num-slaves"]) == REPLICAS for one in seen)
        masters = {int(one["port"]) for one in seen}
        follows = [
            port in masters if role[0] == "master" else role[2] in masters and role[3] == "connected"
            for port, role in roles.items()
        ]
        return settled and len(masters) == 1 and all(follows) and set(others) == {SENTINELS - 1}

    def _master_port(self, port: int) -> int:
        return int(self._sentinel(port, "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def _sentinel(self, port: int, *words: str) -> Any:
        with redis_py.Redis(port=port, decode_responses=True, socket_timeout=10) as connection:
            return connection.execute_command(f"SENTINEL {words[0]}", *words[1:])

    def close(self) -> None:
        """End all and leave nothing."""
        self._stack.close()

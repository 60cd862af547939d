"""HAProxy with the configuration of this repository."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx

from gateway.core import haproxy_slots
from tests.kit.node import Node
from tests.kit.process import HERE, ROOT, Closing, Host, Process, clean_environment, free_port, program
from tests.kit.waiting import until


class LoadBalancer(Closing):
    """HAProxy with the repository's own configuration before some nodes."""

    def __init__(self, nodes: Sequence[Node], folder: Path, host: Host = HERE, /, **env: object) -> None:
        self.port, admin = free_port(), free_port()
        secure = "s" if "LB_CERT" in env else ""
        self.url = f"http{secure}://{host.address}:{self.port}"
        self.ws = f"ws{secure}://{host.address}:{self.port}/ws"
        self.admin = self.api_url = f"http://{host.address}:{admin}"
        self.socket = folder / "haproxy.sock"
        slots = {} if "GW_SLOTS" in env else {f"GW{at}": node.address for at, node in enumerate(nodes, 1)}
        sent = {
            "LB_BIND": host.address, "LB_PORT": self.port, "LB_ADMIN": f"{host.address}:{admin}", "LB_RUN": folder,
            **slots, **env,
        }  # fmt: skip
        self.process = Process(
            "haproxy", [*host.enter, program("haproxy"), "-W", "-db", "-f", str(ROOT / "haproxy" / "haproxy.cfg")],
            folder / "haproxy.log", clean_environment() | {name: str(value) for name, value in sent.items()},
        )  # fmt: skip
        self._nodes = nodes
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Run it, on the ports it had, until it has found all nodes up."""
        self.process.spawn()
        if self._nodes:
            until(lambda: all(self.up(node) for node in self._nodes), 20, "HAProxy has found all nodes up")
        else:
            until(self.servers, 20, "HAProxy answers")

    def kill(self) -> None:
        """End it and its workers at once; its clients' connections are gone."""
        for worker in self.process.children():
            os.kill(worker, signal.SIGKILL)
        self.process.kill()

    def ask(self, command: str) -> str:
        """What it answers on its runtime socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.socket))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()

    def stuck(self) -> dict[str, str]:
        """Which server each source is on that came without a cookie: the table of stickiness."""
        rows = re.findall(r"key=(\S+) .*server_key=(\S+)", self.ask("show table gw"))
        return {source.removeprefix("::ffff:"): server for source, server in rows}

    def up(self, node: Node) -> bool:
        """Whether it gives new clients to `node`, having checked it."""
        server = self._server(node)
        return server.get("status") == "UP" and server.get("check_status") == "L7OK"

    def down(self, node: Node) -> bool:
        """Whether it gives no new clients to `node`; between the two it has begun to doubt."""
        return self._server(node).get("status", "").startswith("DOWN")

    def _server(self, node: Node) -> dict[str, str]:
        return next((one for one in self.servers().values() if one["addr"] == node.address), {})

    def servers(self) -> dict[str, dict[str, str]]:
        """Its statistics of each server."""
        assert self.process.alive, f"haproxy ended:\n{self.process.last_words()}"
        try:
            text = httpx.get(f"{self.admin}/stats;csv", timeout=5, trust_env=False).text
        except httpx.TransportError:
            return {}
        rows = haproxy_slots.statistics_rows(text)
        return {row["svname"]: row for row in rows if row["pxname"] == "gw"}

    def reload(self) -> None:
        """Have it read its configuration again: a new worker listens, the old one keeps its sockets to LB_HARDSTOP."""
        self.process.signal(signal.SIGUSR2)

    def close(self) -> None:
        """End it and leave nothing."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if self.process.alive:
                self.process.terminate()  # the master takes its workers with it
                self.process.exit_code(5)
        self.process.close()

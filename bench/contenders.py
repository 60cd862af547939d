"""The servers: how to install and start each, subscribe and publish. Only this module knows their differences."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgpack  # type: ignore[import-untyped]

from bench.load import HERE, build
from gateway.broker.envelope import Envelope
from gateway.broker.keys import Keys
from gateway.core import hub, message
from tests.cluster import NAMESPACE

CACHE: Final = HERE / ".cache"
TEXT_BYTES: Final = 200  # of a message as the client receives it
STAMP: Final = "@" * 19  # load.c writes the time here
NUMBER: Final = "#####"  # and a topic's number here

NODE_PACKAGES: Final = ("ws", "redis", "socket.io", "@socket.io/redis-adapter")
PYTHON_PACKAGES: Final = ("python-socketio", "redis", "uvicorn[standard]")


class InstallError(Exception):
    """A peer could not be installed; the others are measured without it."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server. `command` returns its command line; None for the gateway, which the lab starts."""

    name: str
    title: str
    path: str
    script: str  # a client's messages, for the topic `{topic}`
    message: Callable[[str, int], tuple[str, bytes]]  # topic and size -> Redis channel and payload
    command: Callable[[], Sequence[str]] | None = None  # arguments: port and Redis' port

    def publish(self, topic: str, size: int = TEXT_BYTES) -> bytes:
        """A template of the Redis command that publishes a message of `size` bytes."""
        channel, payload = self.message(topic, size)
        words = [b"PUBLISH", channel.encode(), payload]
        return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    def script_of(self, topic: str) -> bytes:
        """A script for one client that subscribes to `topic`."""
        return self.script.replace("{topic}", topic).encode()


def data(topic: str, size: int) -> bytes:
    """A DATA message of `size` bytes that contains the time."""
    message = {
        "type": "DATA",
        "topic": topic,
        "data": {"at": STAMP, "pad": ""},
        "timestamp": "2026-01-01T00:00:00.000Z",
    }
    bare = len(json.dumps(message, separators=(",", ":")))
    message["data"] = {"at": STAMP, "pad": "x" * (size - bare)}
    return json.dumps(message, separators=(",", ":")).encode()


def prices(topic: str, size: int) -> bytes:
    """A DATA message of about `size` bytes with the time and token prices."""
    chance = random.Random(size)
    tokens: list[dict[str, object]] = []
    while len(text := _prices(topic, tokens)) < size:
        tokens.append(
            {
                "symbol": "".join(chance.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=4)),
                "price": round(chance.uniform(0.0001, 200), 6),
                "change24h": round(chance.uniform(-30, 30), 2),
                "volume24h": round(chance.uniform(1e3, 1e7), 2),
            }
        )
    return text


def _prices(topic: str, tokens: list[dict[str, object]]) -> bytes:
    message = {
        "type": "DATA",
        "topic": topic,
        "data": {"at": STAMP, "tokens": tokens},
        "timestamp": "2026-01-01T00:00:00.000Z",
    }
    return json.dumps(message, separators=(",", ":")).encode()


def _ours(topic: str, size: int) -> tuple[str, bytes]:
    return _envelope(topic, data(topic, size))


def _ours_of_prices(topic: str, size: int) -> tuple[str, bytes]:
    return _envelope(topic, prices(topic, size))


def _envelope(topic: str, text: bytes) -> tuple[str, bytes]:
    return Keys(NAMESPACE).audience(hub.topic_audience(topic)), Envelope(1_767_225_600_000, message.check(text)).pack()


def _plain(topic: str, size: int) -> tuple[str, bytes]:
    return f"bench:{topic}", data(topic, size)


def _event(size: int) -> dict[str, str]:
    return {"at": STAMP, "pad": "x" * (size - len(f'42["message",{{"at":"{STAMP}","pad":""}}]'))}


def _socketio(topic: str, size: int) -> tuple[str, bytes]:
    packet = {"type": 2, "data": ["message", _event(size)], "nsp": "/"}
    payload: bytes = msgpack.packb(["bench!", packet, {"rooms": [topic], "except": [], "flags": {}}])
    return f"socket.io#/#{topic}#", payload


def _python_socketio(topic: str, size: int) -> tuple[str, bytes]:
    order = {
        "method": "emit", "event": "message", "data": _event(size), "namespace": "/", "room": topic,
        "skip_sid": None, "callback": None, "host_id": "bench",
    }  # fmt: skip
    return "socketio", json.dumps(order).encode()


_JSON = '> {"type":"SUBSCRIBE","topics":["{topic}"],"requestId":"1"}\n< "operation":"subscribe"\n'
_SOCKETIO = '< 0{\n> 40\n< 40{\n> 420["subscribe","{topic}"]\n< 430\n'
_SOCKETIO_PATH = "/socket.io/?EIO=4&transport=websocket"


def _node_server(file: str) -> Callable[[], Sequence[str]]:
    def command() -> Sequence[str]:
        folder = CACHE / "node"
        if not all((folder / "node_modules" / package).exists() for package in NODE_PACKAGES):
            folder.mkdir(parents=True, exist_ok=True)
            _run("npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--loglevel=error", *NODE_PACKAGES)
        modules = folder / "package.json"
        return ["env", f"BENCH_MODULES={modules}", shutil.which("node") or "node", str(HERE / "peers" / file)]

    return command


def _python_socketio_server() -> Sequence[str]:
    python = CACHE / "python" / "bin" / "python"
    done = CACHE / "python" / "done"
    if not done.exists():
        _run(sys.executable, "-m", "venv", CACHE / "python")
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PYTHON_PACKAGES)
        done.touch()
    return [str(python), str(HERE / "peers" / "python_socketio_server.py")]


def _limit() -> Sequence[str]:
    CACHE.mkdir(exist_ok=True)
    return [str(build("peers/limit.c", CACHE))]


def _run(*command: str | Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{command[0]}: {error}") from None
    if done.returncode:
        raise InstallError(f"{command[0]} failed: {(done.stderr or done.stdout)[-500:]}")


def versions() -> dict[str, str]:
    """Versions of the installed peers."""
    found = {}
    for package in NODE_PACKAGES:
        file = CACHE / "node" / "node_modules" / package / "package.json"
        if file.exists():
            found[f"npm {package}"] = json.loads(file.read_text())["version"]
    for file in (CACHE / "python").glob("lib/*/site-packages/python_socketio-*.dist-info"):
        found["python-socketio"] = file.name.removesuffix(".dist-info").rpartition("-")[2]
    return found


GATEWAY: Final = Contender("gateway", "this gateway", "/ws", _JSON, _ours)
PRICED: Final = replace(GATEWAY, message=_ours_of_prices)
STARLETTE: Final = Contender(
    "starlette", "plain Starlette", "/ws", _JSON, _plain,
    lambda: [sys.executable, str(HERE / "peers" / "starlette_server.py")],
)  # fmt: skip
WS: Final = Contender("ws", "Node ws + Redis", "/ws", _JSON, _plain, _node_server("ws_server.mjs"))
SOCKETIO: Final = Contender(
    "socketio", "Socket.IO 4", _SOCKETIO_PATH, _SOCKETIO, _socketio, _node_server("socketio_server.mjs")
)
PYTHON_SOCKETIO: Final = Contender(
    "python-socketio", "python-socketio", _SOCKETIO_PATH, _SOCKETIO, _python_socketio, _python_socketio_server
)
LIMIT: Final = Contender("limit", "C, one send each", "/ws", _JSON, _plain, _limit)

ALL: Final = (GATEWAY, STARLETTE, WS, SOCKETIO, PYTHON_SOCKETIO, LIMIT)

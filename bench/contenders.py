"""The servers: how to install and start each, subscribe and publish. Only this module knows their differences."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

import msgpack  # type: ignore[import-untyped]

from bench.load import HERE, build
from gateway.broker.envelope import Envelope
from gateway.broker.keys import Keys
from gateway.core import hub, message
from tests.kit.node import API_KEY, NAMESPACE

CACHE: Final = HERE / ".cache"
TEXT_BYTES: Final = 200  # of a message as the client receives it
STAMP: Final = "@" * 19  # load.c writes the time here
NUMBER: Final = "#####"  # and a topic's number here

NODE_PACKAGES: Final = ("ws", "redis", "socket.io", "@socket.io/redis-adapter")
PYTHON_PACKAGES: Final = ("python-socketio", "redis", "uvicorn[standard]")


class InstallError(Exception):
    """A peer could not be installed; the others are measured without it."""


# The channel and the messages -> path, header with the API key, and JSON body.
Publish: TypeAlias = Callable[[str, Sequence[object]], tuple[str, str, object]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A server. `command` returns its command line; None for the gateway, which the lab starts."""

    name: str
    title: str
    path: str
    script: str  # a client's messages, for the topic `{topic}`
    message: Callable[[str, int], tuple[str, bytes]]  # topic and size -> Redis channel and payload
    command: Callable[[], Sequence[str]] | None = None  # arguments: port and Redis' port
    needs: str = ""  # a program that must be on the PATH
    channel: Callable[[str], str] = str  # topic -> its name with this server
    publish_one: Publish | None = None  # an HTTP request that publishes a message
    publish_many: Publish | None = None  # an HTTP request that publishes several
    publish_socket: str = ""  # a client's message that publishes to `{topic}`
    settings: Mapping[str, object] = field(default_factory=dict)  # of our node

    @property
    def available(self) -> bool:
        """Whether the program that it needs is on the PATH."""
        return not self.needs or shutil.which(self.needs) is not None

    def publish(self, topic: str, size: int = TEXT_BYTES) -> bytes:
        """A template of the Redis command that publishes a message of `size` bytes."""
        channel, payload = self.message(topic, size)
        words = [b"PUBLISH", channel.encode(), payload]
        return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    def script_of(self, topic: str) -> bytes:
        """A script for one client that subscribes to `topic`."""
        return self.script.replace("{topic}", self.channel(topic)).encode()

    def request(self, topic: str, count: int = 1) -> bytes:
        """An HTTP request that publishes `count` messages to `topic`."""
        made = self.publish_one if count == 1 else self.publish_many
        assert made is not None, f"{self.name} has no HTTP request to publish {count} messages"
        path, header, document = made(self.channel(topic), [json.loads(data(topic, TEXT_BYTES))["data"]] * count)
        body = json.dumps(document, separators=(",", ":")).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def publish_text(self, topic: str) -> bytes:
        """A client's message that publishes to `topic`."""
        return self.publish_socket.replace("{topic}", self.channel(topic)).encode()


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


def _centrifugo(topic: str, size: int) -> tuple[str, bytes]:
    """Its Redis engine reads a protobuf `Publication`; field 4, `data`, is the JSON of the message."""
    channel = _centrifugo_channel(topic)
    bare = len(f'{{"push":{{"channel":"{channel}","pub":{{"data":{{"at":"{STAMP}","pad":""}}}}}}}}')
    text = json.dumps({"at": STAMP, "pad": "x" * max(0, size - bare)}, separators=(",", ":")).encode()
    length, head = len(text), bytearray([4 << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return f"centrifugo.client.{channel}", bytes(head) + bytes([length]) + text


def _centrifugo_channel(topic: str) -> str:
    """A topic with history is in the namespace that has history."""
    return f"history:{topic}" if topic.startswith("h") else topic


_OUR_KEY = f"Authorization: Bearer {API_KEY}"
_CENTRIFUGO_KEY = "X-API-Key: bench"


def _our_publish(topic: str, messages: Sequence[object]) -> tuple[str, str, object]:
    return "/api/publish", _OUR_KEY, {"topic": topic, "data": messages[0]}


def _our_batch(topic: str, messages: Sequence[object]) -> tuple[str, str, object]:
    return "/api/publish", _OUR_KEY, {"messages": [{"topic": topic, "data": one} for one in messages]}


def _centrifugo_publish(channel: str, messages: Sequence[object]) -> tuple[str, str, object]:
    return "/api/publish", _CENTRIFUGO_KEY, {"channel": channel, "data": messages[0]}


def _centrifugo_batch(channel: str, messages: Sequence[object]) -> tuple[str, str, object]:
    commands = [{"publish": {"channel": channel, "data": one}} for one in messages]
    return "/api/batch", _CENTRIFUGO_KEY, {"commands": commands}


_JSON = '> {"type":"SUBSCRIBE","topics":["{topic}"],"requestId":"1"}\n< "operation":"subscribe"\n'
_CENTRIFUGO = (
    '> {"id":1,"connect":{}}\n< "id":1,"connect"\n> {"id":2,"subscribe":{"channel":"{topic}"}}\n< "id":2,"subscribe"\n'
)
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


def _centrifugo_server() -> Sequence[str]:
    """The shell passes the port and Redis' port as settings."""
    settings = "CENTRIFUGO_HTTP_SERVER_PORT=$1 CENTRIFUGO_ENGINE_REDIS_ADDRESS=redis://127.0.0.1:$2"
    return [
        "sh", "-c", f'{settings} GOMAXPROCS=1 exec "$0" --config {HERE / "peers" / "centrifugo.json"}',
        shutil.which("centrifugo") or "centrifugo",
    ]  # fmt: skip


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


@cache
def _go_version(program: Path) -> str:
    """The version of the program's main module, which Go stores in it; the program of `go install` knows no other."""
    stored = re.search(rb"\nmod\t\S+\tv(\S+)", program.read_bytes())
    return stored[1].decode() if stored else "unknown"


def versions() -> dict[str, str]:
    """Versions of the installed peers."""
    found = {}
    for package in NODE_PACKAGES:
        file = CACHE / "node" / "node_modules" / package / "package.json"
        if file.exists():
            found[f"npm {package}"] = json.loads(file.read_text())["version"]
    if program := shutil.which("centrifugo"):
        found["Centrifugo"] = _go_version(Path(program))
    for file in (CACHE / "python").glob("lib/*/site-packages/python_socketio-*.dist-info"):
        found["python-socketio"] = file.name.removesuffix(".dist-info").rpartition("-")[2]
    return found


GATEWAY: Final = Contender(
    "gateway", "this gateway", "/ws", _JSON, _ours,
    publish_one=_our_publish, publish_many=_our_batch,
    publish_socket=f'{{"type":"PUBLISH","topic":"{{topic}}","data":{{"at":"{STAMP}"}},"requestId":"1"}}',
)  # fmt: skip
OUR_CENTRIFUGO: Final = replace(
    GATEWAY, name="gateway-centrifugo", title="gateway, their protocol", path="/connection/websocket",
    script=_CENTRIFUGO, settings={"centrifugo": 1},
)  # fmt: skip
PRICED: Final = replace(GATEWAY, message=_ours_of_prices)
CENTRIFUGO: Final = Contender(
    "centrifugo", "Centrifugo", "/connection/websocket", _CENTRIFUGO, _centrifugo, _centrifugo_server,
    needs="centrifugo", channel=_centrifugo_channel, publish_one=_centrifugo_publish, publish_many=_centrifugo_batch,
    publish_socket=f'{{"id":3,"publish":{{"channel":"{{topic}}","data":{{"at":"{STAMP}"}}}}}}',
)  # fmt: skip
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

ALL: Final = (GATEWAY, CENTRIFUGO, STARLETTE, WS, SOCKETIO, PYTHON_SOCKETIO, LIMIT)

"""Empty frames, sent as fast as the connection takes them: the nodes stay ready, and other clients hardly notice."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from tests.conftest import Connect
from tests.kit.client import Client, new_source
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.raw import frame
from tests.kit.waiting import eventually

ATTACKERS = 4
BYTES_A_SECOND = 2_500_000  # of each
SECONDS = 4.0  # for each kind
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
EMPTY = b"\x00\x80\x00\x00\x00\x00"  # a continuation with nothing in it
FLOODS = {
    "empty fragments": EMPTY,
    "fragments of a byte": frame(0, b"x", final=False),
    "empty pongs": frame(10, b""),
    "pings between fragments": frame(9, b"") + EMPTY,
}


class Attack:
    """Threads that connect through `port`, send the same frames again and again, and come back when they are closed."""

    def __init__(self, port: int, frames: bytes) -> None:
        self.sent_bytes = 0
        self.connects = 0
        self._port = port
        self._block = frames * (BYTES_A_SECOND // 50 // len(frames))
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(ATTACKERS)]

    def _run(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(OSError), socket.socket() as line:
                line.bind((new_source(), 0))
                line.settimeout(2)
                line.connect(("127.0.0.1", self._port))
                line.sendall(HANDSHAKE)
                if b" 101 " not in line.recv(1 << 12):
                    continue
                self.connects += 1
                line.sendall(frame(1, b"", final=False))
                while not self._ended.wait(0.02):
                    line.sendall(self._block)
                    self.sent_bytes += len(self._block)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """While it goes on."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()


def have_closed(nodes: Cluster, number: int) -> bool:
    """Whether the nodes have closed so many sockets for their rate."""
    return sum(node.metric("gateway_closes_total", code="3013") for node in nodes) >= number


async def test_a_flood_of_small_frames_through_haproxy_neither_stops_a_node_nor_delays_others(
    cluster: Callable[..., Cluster], haproxy: Callable[..., LoadBalancer], connect: Connect
) -> None:
    nodes = cluster(2)
    front = haproxy(nodes)
    honest: list[Client] = [await connect(node) for node in nodes]
    for at, (kind, frames) in enumerate(FLOODS.items(), 1):
        attack, waited = Attack(front.port, frames), [0.0]
        with attack.under_way():
            ends = time.monotonic() + SECONDS
            while (started := time.monotonic()) < ends:
                await asyncio.gather(*(client.ask(type="ping", timestamp=started) for client in honest))
                waited.append(time.monotonic() - started)
                await asyncio.sleep(0.02)
            assert all(front.up(node) for node in nodes)
        slowest = max(waited)
        print(f"{kind}: {attack.sent_bytes / 1e6:.0f} MB by {attack.connects} sockets, slowest pong {slowest:.3f} s")
        assert attack.connects >= ATTACKERS and attack.sent_bytes > 1_000_000
        assert slowest < 1
        await eventually(partial(have_closed, nodes, ATTACKERS * at), what="each was closed")
    for node in nodes:
        node.finish_log()
    assert not any(node.events("lease taken, writing all rows")[1:] for node in nodes), "a lease was lost"

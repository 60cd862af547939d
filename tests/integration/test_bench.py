"""A short run of the bench: the node and the load generator count the same messages."""

from __future__ import annotations

import http.server
import itertools
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from bench import scenarios
from bench.contenders import CENTRIFUGO, GATEWAY, LIMIT
from bench.lab import lab
from bench.load import Load, build


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    with Load(build("load.c", tmp_path), tmp_path) as running:
        yield running


def test_messages_that_a_server_joins_in_one_frame_are_counted_one_by_one(load: Load) -> None:
    pushed = '{"push":{"channel":"t","pub":{"data":{"at":"0000000000000000000"}}}}'

    pongs = threading.Semaphore(0)

    def talk(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            for text in map(str, connection):
                if "connect" in text:
                    connection.send('{"id":1,"connect":{"ping":600}}')
                elif "subscribe" in text:
                    connection.send("\n".join(['{"id":2,"subscribe":{}}', pushed, pushed, pushed, "{}"]))
                elif text == "{}":
                    pongs.release()

    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            script, port = load.file(CENTRIFUGO.script_of("t")), server.socket.getsockname()[1]
            answer = load.ask("connect", 10, ports=port, path="/", script=script, count=2, seconds=10)
            assert (answer["ready"], answer["received"]) == (2, 6)
            assert pongs.acquire(timeout=10) and pongs.acquire(timeout=10), "each client answers the ping"
        finally:
            load.close()
            server.shutdown()
            thread.join()


def test_chunked_responses_are_read_and_errors_with_status_200_are_refusals(load: Load) -> None:
    numbers = itertools.count()

    class Api(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            body = b'{"error":{"code":108}}' if next(numbers) % 2 else b'{"result":{}}'
            self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            template = load.file(CENTRIFUGO.request("t"))
            answer = load.ask(
                "publish", 5, via="http", ports=server.server_port, template=template, fan=0, publishers=2, warm=0,
                seconds=0.5, drain=0,
            )  # fmt: skip
            assert answer["answered"] > 0
            assert abs(answer["answered"] - answer["refused"]) <= 2, "every other response is an error"
        finally:
            load.close()
            server.shutdown()
            thread.join()


def test_what_is_published_is_counted_and_its_delay_and_cost_are_known() -> None:
    with lab(0.3) as made:
        server = made.start(GATEWAY)
        came = made.connect(server, 20, topics=2)
        answer = made.publish(server, fan=10, topics=2, rate=100)
        assert came["ready"] == 20
        assert answer["published"] >= 30, "warm-up and measurement at 100 a second"
        assert (answer["lost"], answer["refused"], answer["closed"]) == (0, 0, 0)
        assert 0 < answer["received"] <= answer["published"] * 10
        assert sum(count for _, count in answer["delays_us"]) == answer["received"]
        assert made.load.ask("close", 5) == {}


def test_a_scenario_gives_figures_of_each_contender() -> None:
    for contender in (GATEWAY, LIMIT):
        with lab(0.3) as made:
            figures = scenarios.paced(made, contender, 0.02)
        assert figures["deliveries/s"] > 0
        assert figures["p50 ms"] <= figures["p99 ms"] <= figures["max ms"]


def test_the_lost_are_missed_when_they_come_back() -> None:
    with lab(0.3) as made:
        assert scenarios.recovery(made, GATEWAY, 0.02)["clients/s"] > 0

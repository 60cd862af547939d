"""Simulated hosts on one machine: they reach each other until the test partitions them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.network import NAMESPACES, Network, NetworkError
from tests.kit.process import Process
from tests.kit.waiting import until

PORT = 7000
OURS = "/proc/thread-self/ns/net"  # the network that we are in


@pytest.fixture
def network() -> Iterator[Network]:
    """Three hosts."""
    try:
        made = Network(["one", "two", "three"])
    except NetworkError as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture
def served(network: Network, folder: Path) -> Iterator[list[str]]:
    """Addresses of servers, on hosts two and three."""
    servers = []
    for name in ("two", "three"):
        host = network.host(name)
        words = [*host.enter, sys.executable, "-m", "http.server", str(PORT), "--bind", host.address]
        servers.append((host.address, Process(name, words, folder / f"{name}.log")))
    for _, process in servers:
        process.spawn()
    yield [address for address, _ in servers]
    for _, process in servers:
        process.close()


def reaches(address: str, source: str = "") -> str:
    """What becomes of a connection from where we are."""
    with socket.socket() as connection:
        connection.settimeout(1)
        try:
            connection.bind((source, 0))
            connection.connect((address, PORT))
        except OSError as error:
            return type(error).__name__
        return "connected"


def test_what_is_cut_is_silent_and_the_rest_is_as_it_was(network: Network, served: list[str]) -> None:
    two, three = served
    home = os.readlink(OURS)
    with network.inside("one"):
        assert os.readlink(OURS) != home
        until(lambda: reaches(two) == reaches(three) == "connected")
        network.cut(["one"], ["two"])
        assert reaches(two) == "TimeoutError", "it is dropped: a refusal would be an answer"
        assert reaches(three) == "connected"
        network.cut(["one"], ["three"])
        assert reaches(two) == reaches(three) == "TimeoutError"
        network.heal()
        assert reaches(two) == reaches(three) == "connected"
        network.lose("two", 99)
        assert (reaches(two), reaches(three)) == ("TimeoutError", "connected")
    assert os.readlink(OURS) == home


def test_a_host_may_be_a_crowd(network: Network, served: list[str]) -> None:
    start = network.crowd("one")
    with network.inside("one"):
        until(lambda: reaches(served[0]) == "connected")
        assert reaches(served[0], f"{start}.16.1") == reaches(served[0], f"{start}.31.254") == "connected"


def test_nothing_of_it_is_left(network: Network) -> None:
    name = network.host("one").enter[-1]
    assert (NAMESPACES / name).exists()
    network.close()
    assert not (NAMESPACES / name).exists()
    network.close()  # twice does no harm

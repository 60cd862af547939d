"""Fixtures for all tests that need real processes. No process outlives the test that started it.

`redis`, `cluster` and `haproxy` are a test's own, to be broken at will; `plain` is one cluster of three nodes, with
`front` before it, for all tests that leave it as it was.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from gateway import logging
from tests.kit.client import Api, Client, Front
from tests.kit.cluster import Cluster
from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import Node
from tests.kit.process import Process
from tests.kit.redis import Redis

Connect = Callable[..., Awaitable[Client]]

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_configure() -> None:
    """Have the processes that tests start obey SIGHUP, also where the tests run under nohup; log as a node does."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    logging.use_structlog()  # as in a node, for `capture_logs`


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each process's log with a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {process.name}", process.last_words()) for process in Process.running]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was done with each sample of the documentation, if its tests ran."""
    if any(report.nodeid.startswith("tests/docs/") for report in terminalreporter.stats.get("passed", ())):
        from tests.docs import samples

        terminalreporter.section("samples of the documentation")
        terminalreporter.write_line(samples.listing() if terminalreporter.verbosity > 0 else samples.summary())


def _folder() -> tempfile.TemporaryDirectory[str]:
    # Not pytest's own: a unix socket's path has 108 characters, and theirs hold the test's name.
    return tempfile.TemporaryDirectory(prefix="gateway-test-")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short-named folder of the test's own."""
    with _folder() as path:
        yield Path(path)


@pytest.fixture
def redis(folder: Path) -> Iterator[Redis]:
    """A private redis-server."""
    with Redis(folder) as server:
        yield server


@pytest.fixture
def cluster(folder: Path, redis: Redis) -> Iterator[Callable[..., Cluster]]:
    """`cluster(3, lease_seconds=3)`: so many nodes on the test's own `redis`, ready; settings by their names."""
    with ExitStack() as stack:
        started: list[Cluster] = []

        def start(n: int, **settings: object) -> Cluster:
            assert not started, "one cluster a test; it can grow"
            started.append(stack.enter_context(Cluster(n, folder, redis, **settings)))
            return started[0]

        yield start
        complaints = started[0].complaints() if started else []
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def haproxy(folder: Path) -> Iterator[Callable[..., LoadBalancer]]:
    """`haproxy(nodes, RL_CUR=1000)`: the repository's HAProxy before `nodes`, which it has found up."""
    with ExitStack() as stack:

        def start(nodes: Sequence[Node], **env: object) -> LoadBalancer:
            return stack.enter_context(LoadBalancer(nodes, folder, **env))

        yield start


@pytest.fixture(scope="session")
def shared() -> Iterator[Cluster]:
    """The session's own cluster; tests take it as `plain`."""
    with _folder() as path, Redis(Path(path)) as server, Cluster(3, Path(path), server) as nodes:
        yield nodes


@pytest.fixture
def plain(shared: Cluster) -> Iterator[Cluster]:
    """Three nodes that all tests share: not to be broken, and no test's clients stay."""
    for node in shared:
        node.process.turn_page()
    yield shared
    assert shared.complaints() == []
    assert all(node.process.alive for node in shared)


@pytest.fixture(scope="session")
def front(shared: Cluster) -> Iterator[LoadBalancer]:
    """HAProxy before `plain`."""
    with _folder() as path, LoadBalancer(shared.nodes, Path(path)) as balancer:
        yield balancer


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """`await connect(node, user="ann")`: a welcomed `Client`, gone at the end of the test."""
    clients: list[Client] = []

    async def welcome(front: Front | str, **how: Any) -> Client:
        client = await Client.connect(front, **how)
        clients.append(client)
        return client

    yield welcome
    await asyncio.gather(*(client.leave() for client in clients))


@pytest.fixture
async def api() -> AsyncIterator[Callable[[Front], Api]]:
    """`api(node)`: its HTTP API."""
    opened: dict[str, Api] = {}

    def of(front: Front) -> Api:
        return opened.setdefault(front.api_url, Api(front))

    yield of
    await asyncio.gather(*(one.close() for one in opened.values()))

"""gateway.connections.admission: slots are taken, kept and given back as connections come, change and go."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.connections import admission
from gateway.connections.admission import Admission, connection_limit
from gateway.core.errors import CloseReason
from gateway.metrics import Metrics
from gateway.transports.connection import ConnectionStage
from tests.unit.virtual_time import in_virtual_time, quiet


class Seats:
    """Stands for `ConnectionLimits`: each change, and the limit that has no room."""

    def __init__(self) -> None:
        self.full: str | None = None
        self.changes: list[tuple[int, str | None, str | None]] = []

    async def acquire(self, user: str | None, address: str | None) -> str | None:
        await asyncio.sleep(0.01)
        if self.full is None:
            self.changes.append((1, user, address))
        return self.full

    def release(self, user: str | None, address: str | None) -> None:
        self.changes.append((-1, user, address))


class Client:
    """A connection whose user is `counted`, and now `user`."""

    def __init__(self, user: str | None, counted: str | None) -> None:
        self.session = SimpleNamespace(identity=SimpleNamespace(user=user))
        self.counted_user = counted
        self.info = SimpleNamespace(ip="10.0.0.1")
        self.stage = ConnectionStage.OPEN
        self.held: list[str] = []
        self.closed: list[tuple[CloseReason, str]] = []

    def hold(self, why: str) -> None:
        self.held.append(why)

    def release(self, why: str) -> None:
        self.held.remove(why)

    def disconnect(self, code: CloseReason, reason: str) -> None:
        self.closed.append((code, reason))


class At:
    """An admission and what is around it."""

    def __init__(self) -> None:
        self.seats, self.metrics = Seats(), Metrics()
        self.failed: list[Any] = []
        self.limit: str | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.refusal_times: list[tuple[int, float]] = []
        flow = SimpleNamespace(exceeded=self._refuses, is_overloaded=lambda count: count > 10)
        sources = SimpleNamespace(of=lambda ip: f"net of {ip}")
        outbox = SimpleNamespace(send_internal_error=self.failed.append)
        self.admission = Admission(
            cast(Any, flow), cast(Any, self.seats), cast(Any, sources), cast(Any, outbox), self.metrics, self._spawn
        )

    def _refuses(self, connections: int, now: float) -> str | None:
        self.refusal_times.append((connections, now))
        return self.limit

    def _spawn(self, work: Coroutine[Any, Any, None], _name: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    def limited(self, limit: str) -> float:
        return float(self.metrics.limited.labels(limit).value)

    async def become(self, client: Client, go_on: Any = lambda: None) -> None:
        self.admission.change_identity(cast(Any, client), go_on)
        await asyncio.gather(*self.tasks)


@in_virtual_time
async def test_a_handshake_takes_slots_and_gives_them_back_if_nothing_comes_of_it() -> None:
    at = At()
    assert await at.admission.acquire("ann", "10.0.0.1") is None
    at.admission.cancel("ann", "10.0.0.1")
    assert at.seats.changes == [(1, "ann", "net of 10.0.0.1"), (-1, "ann", "net of 10.0.0.1")]
    assert at.limited("user_connections") == 0


@in_virtual_time
async def test_a_handshake_without_room_is_counted_and_takes_nothing() -> None:
    at = At()
    at.seats.full = "address_connections"
    assert await at.admission.acquire("ann", "10.0.0.1") == "address_connections"
    assert (at.seats.changes, at.limited("address_connections")) == ([], 1)


def test_a_connection_that_leaves_gives_back_the_user_it_was_counted_for() -> None:
    at = At()
    at.admission.release(cast(Any, Client("new", "old")))
    assert at.seats.changes == [(-1, "old", "net of 10.0.0.1")]


@in_virtual_time
async def test_the_same_user_goes_on_at_once_and_asks_for_no_slot() -> None:
    at, client, went_on = At(), Client("ann", "ann"), []
    at.admission.change_identity(cast(Any, client), lambda: went_on.append(1))
    assert (went_on, at.tasks, client.held) == ([1], [], [])


@in_virtual_time
async def test_another_user_is_held_until_it_has_a_slot_and_the_former_ones_is_free() -> None:
    at, client, went_on = At(), Client("ann", None), []
    at.admission.change_identity(cast(Any, client), lambda: went_on.append(list(client.held)))
    await quiet()
    assert (client.held, went_on) == (["slot"], [])
    await asyncio.gather(*at.tasks)
    assert went_on == [["slot"]], "what waits is handled behind it"
    assert (client.held, client.counted_user, client.closed) == ([], "ann", [])
    assert at.seats.changes == [(1, "ann", None), (-1, None, None)]


@in_virtual_time
async def test_another_user_without_room_is_closed_and_still_counted_as_the_former() -> None:
    at, client, went_on = At(), Client("ann", "bob"), []
    at.seats.full = "user_connections"
    await at.become(client, lambda: went_on.append(1))
    assert client.closed == [(CloseReason.TOO_MANY_CONNECTIONS, "too many connections of this user")]
    assert (client.counted_user, at.seats.changes, went_on, at.limited("user_connections")) == ("bob", [], [], 1)


@in_virtual_time
async def test_a_connection_that_closed_meanwhile_gives_the_new_slot_back() -> None:
    at, client, went_on = At(), Client("ann", "bob"), []
    client.stage = next(stage for stage in ConnectionStage if stage is not ConnectionStage.OPEN)
    await at.become(client, lambda: went_on.append(1))
    assert (at.seats.changes, client.counted_user, went_on) == ([(1, "ann", None), (-1, "ann", None)], "bob", [])


@in_virtual_time
async def test_what_fails_behind_the_new_slot_fails_this_connection_only() -> None:
    at, client = At(), Client("ann", "bob")

    def fail() -> None:
        raise LookupError

    await at.become(client, fail)
    assert (at.failed, client.held, client.counted_user) == ([client], [], "ann")


@in_virtual_time
async def test_a_full_node_rejects_a_connection_and_counts_it_once() -> None:
    at = At()
    assert at.admission.refusal(5) is None
    at.limit = "connects"
    assert at.admission.refusal(6) == "too many new connections to this node at once; connect again"
    assert at.refusal_times == [(5, 0.0), (6, 0.0)]
    assert at.limited("connects") == 1
    assert at.metrics.refusals.labels("503").value == 1
    assert [at.admission.is_overloaded(count) for count in (10, 11)] == [False, True]
    assert at.limited("connections") == 1
    at.admission.request_aborted(cast(Any, "head_seconds"))
    assert at.limited("head_seconds") == 1


@pytest.mark.parametrize(("configured", "files", "most"), [
    (7, 1000, 7), (0, 1000, 900), (0, 1025, 922), (0, resource.RLIM_INFINITY, admission.MAX_UNLIMITED),
])  # fmt: skip
def test_a_tenth_of_the_file_descriptors_is_left_to_all_else(
    configured: int, files: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (files, files + 1))
    assert connection_limit(configured) == most

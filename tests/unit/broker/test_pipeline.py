"""gateway.broker.pipeline: what a durable publish waits for, and its error if Redis cannot confirm it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, cast

import pytest
from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError

from gateway.broker import pipeline
from gateway.broker.errors import Unavailable, Unconfirmed
from gateway.broker.exchange import Exchange
from gateway.broker.pipeline import Durability, Pipelines
from gateway.broker.slot_map import SlotMap
from gateway.metrics import Metrics
from tests.unit.virtual_time import in_virtual_time, later, quiet


class Redis:
    """One server. `confirms` is its answer to WAIT and WAITAOF."""

    def __init__(self, confirms: Any) -> None:
        self.slot_map = SlotMap(sharded=False)
        self.confirms = confirms
        self.commands: list[tuple[Any, ...]] = []

    async def refresh(self) -> None:
        """There is nothing to learn."""

    def mark_stale(self) -> None:
        """There is no slot map."""

    def owner(self, _slot: int) -> str:
        return ""

    def role_is_due(self) -> bool:
        return False

    async def check_role(self, *_answers: Any) -> None:
        """It is the right server."""

    def client(self, _server: str) -> Self:
        return self

    async def exchange(self, _client: Self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self.commands += commands
        return [self.confirms if name.startswith("WAIT") else 1 for name, *_ in commands]


async def publish(
    redis: Redis, durability: Durability, commands: Sequence[tuple[Any, ...]] = (("PUBLISH", "channel", b"x"),)
) -> list[Any]:
    pipelines = Pipelines(cast(Any, redis), 2.0, Metrics(), durability)
    tasks = set()
    pipelines.start(lambda work: tasks.add(asyncio.create_task(work)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "send", lambda _, *given: redis.exchange(*given))
        try:
            return await pipelines.transact(commands)
        finally:
            for task in tasks:
                task.cancel()


@pytest.mark.parametrize(
    ("durability", "confirms", "waits"),
    [
        (Durability(), None, []),
        (Durability(replicas=2, seconds=0.5), 2, [("WAIT", 2, 500)]),
        (Durability(fsync=True), [1, 0], [("WAITAOF", 1, 0, 1000)]),
        (Durability(replicas=1, fsync=True), [1, 1], [("WAITAOF", 1, 1, 1000)]),
    ],
)
async def test_a_publish_is_acknowledged_behind_what_it_waits_for(
    durability: Durability, confirms: Any, waits: list[tuple[Any, ...]]
) -> None:
    redis = Redis(confirms)
    assert await publish(redis, durability) == [1]
    assert redis.commands == [("PUBLISH", "channel", b"x"), *waits]


@pytest.mark.parametrize(
    ("durability", "confirms", "says"),
    [
        (Durability(replicas=2), 1, "published, but confirmed by 1 of 2 replicas"),
        (Durability(fsync=True), [0, 0], "published, but not on Redis' disk within 1 s"),
        (Durability(replicas=1, fsync=True), [1, 0], "published, but confirmed by 0 of 1 replicas"),
        (
            Durability(fsync=True), ResponseError("unknown command 'WAITAOF'"),
            "published, but Redis could not confirm: unknown command 'WAITAOF'; "
            "GATEWAY_WAIT_FSYNC needs Redis 7.2 or newer with appendonly yes",
        ),
    ],
)  # fmt: skip
async def test_an_unconfirmed_publish_names_what_is_missing(durability: Durability, confirms: Any, says: str) -> None:
    with pytest.raises(Unconfirmed) as raised:
        await publish(Redis(confirms), durability)
    assert str(raised.value) == says


SCRIPT = ("EVAL", "return 1", 1, "key")


class Scripted(Redis):
    """A server that knows no script at first."""

    def __init__(self) -> None:
        super().__init__(2)
        self._known: set[str] = set()

    async def exchange(self, client: Self, commands: list[tuple[Any, ...]]) -> list[Any]:
        answers = await super().exchange(client, commands)
        for at, (name, script, *_) in enumerate(commands):
            if name == "EVAL":
                self._known.add(hashlib.sha1(script.encode()).hexdigest())
            elif name == "EVALSHA" and script not in self._known:
                answers[at] = NoScriptError("No matching script")
        return answers


async def test_a_script_is_sent_by_digest_and_in_full_where_it_is_missing() -> None:
    redis, digest = Scripted(), hashlib.sha1(SCRIPT[1].encode()).hexdigest()
    brief, wait = ("EVALSHA", digest, 1, "key"), ("WAIT", 2, 500)
    for _ in range(2):
        assert await publish(redis, Durability(replicas=2, seconds=0.5), [SCRIPT]) == [1]
    assert redis.commands == [brief, wait, SCRIPT, wait, brief, wait]


class Transactional(Redis):
    """A server that executes one transaction."""

    async def exchange(self, client: Self, commands: list[tuple[Any, ...]]) -> list[Any]:
        answers = await super().exchange(client, commands)
        return [*answers[:-1], answers[1:-1]]


async def test_a_transaction_has_each_script_in_full_once() -> None:
    redis, digest = Transactional(None), hashlib.sha1(SCRIPT[1].encode()).hexdigest()
    other, plain = ("EVAL", "return 2", 0), ("PUBLISH", "channel", b"x")
    assert await publish(redis, Durability(), [SCRIPT, plain, SCRIPT, other, other]) == [1] * 5
    again = [("EVALSHA", digest, 1, "key"), ("EVALSHA", hashlib.sha1(b"return 2").hexdigest(), 0)]
    assert redis.commands == [("MULTI",), SCRIPT, plain, again[0], other, again[1], ("EXEC",)]


# ---- the queue


class Cluster:
    """Servers, each with an answer for each command; a slot is the number in the command."""

    def __init__(self) -> None:
        self.slot_map = self
        self.sharded = True
        self.servers: tuple[str, ...] = ("a", "b")
        self.owners: dict[int, str] = {}
        self.batches: list[tuple[str, list[tuple[Any, ...]]]] = []
        self.answers: dict[tuple[str, bytes], Any] = {}  # by server and last part of the command
        self.open = asyncio.Event()
        self.open.set()
        self.fails: Exception | None = None
        self.role_due = False
        self.replica = False
        self.left: list[str] = []
        self.stale = 0
        self.is_moved: list[tuple[int, str]] = []

    def slot(self, command: tuple[Any, ...]) -> int:
        return int(command[1])

    def move(self, slot: int, server: str) -> None:
        self.is_moved.append((slot, server))
        self.owners[slot] = server

    async def refresh(self) -> None:
        """The map is known."""

    def mark_stale(self) -> None:
        self.stale += 1

    def owner(self, slot: int) -> str:
        return self.owners.get(slot, "a")

    def role_is_due(self) -> bool:
        return self.role_due

    def is_replica(self, _answer: Any) -> bool:
        return self.replica

    async def drop_connections(self, server: str, _client: Any, _reason: str) -> None:
        self.left.append(server)

    async def check_role(self, _server: str, _client: Any, answers: Any) -> None:
        list(answers)

    def client(self, server: str) -> str:
        return server

    async def exchange(self, server: str, commands: list[tuple[Any, ...]]) -> list[Any]:
        self.batches.append((server, commands))
        await self.open.wait()
        if self.fails is not None:
            raise self.fails
        answers: list[Any] = []
        since = 0
        for at, command in enumerate(commands):
            if command[0] == "MULTI":
                since = at
                answers.append(b"OK")
            elif command[0] == "EXEC":
                done = [self._answer(server, one) for one in commands[since + 1 : at]]
                aborted = next((one for one in done if isinstance(one, MovedError | AskError)), None)
                if aborted is not None:
                    answers[since + 1 :] = done
                answers.append(ResponseError("EXECABORT") if aborted is not None else done)
            else:
                answers.append(self._answer(server, command))
        return answers

    def _answer(self, server: str, command: tuple[Any, ...]) -> Any:
        return self.answers.get((server, command[-1]), command[-1])


@asynccontextmanager
async def lanes_of(cluster: Cluster) -> AsyncIterator[Pipelines]:
    pipelines = Pipelines(cast(Any, cluster), 2.0, Metrics(), Durability())
    tasks: set[asyncio.Task[None]] = set()
    pipelines.start(lambda work: tasks.add(asyncio.get_running_loop().create_task(work)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "send", lambda _, *given: cluster.exchange(*given))
        try:
            yield pipelines
        finally:
            for task in tasks:
                task.cancel()


def say(slot: int, text: bytes) -> tuple[Any, ...]:
    return "PUBLISH", slot, text


async def behind(
    cluster: Cluster, pipelines: Pipelines, *sends: list[tuple[Any, ...]]
) -> list[asyncio.Task[list[Any]]]:
    """Queue calls behind a batch that is under way, and let that end."""
    cluster.open.clear()
    first = asyncio.create_task(pipelines.transact([say(0, b"first")]))
    await quiet()
    waiting = [asyncio.create_task(pipelines.transact(commands)) for commands in sends]
    await quiet()
    assert len(cluster.batches) == 1, "one batch at a time"
    cluster.open.set()
    await first
    return waiting


@in_virtual_time
async def test_what_waits_goes_in_one_batch_a_transaction_for_each_slot_in_order() -> None:
    cluster = Cluster()
    async with lanes_of(cluster) as pipelines:
        waiting = await behind(
            cluster, pipelines, [say(1, b"x")], [say(2, b"y"), say(1, b"z")], [say(3, b"1")]
        )  # fmt: skip
        assert [await one for one in waiting] == [[b"x"], [b"y", b"z"], [b"1"]]
        assert cluster.batches[1:] == [
            ("a", [("MULTI",), say(1, b"x"), say(1, b"z"), ("EXEC",), say(2, b"y"), say(3, b"1")]),
        ]  # fmt: skip


@in_virtual_time
async def test_a_batch_has_at_most_512_commands_unless_one_call_has_more() -> None:
    cluster = Cluster()
    async with lanes_of(cluster) as pipelines:
        waiting = await behind(
            cluster, pipelines, [say(0, b"x")] * 600, [say(0, b"y")] * 512, [say(0, b"z")], [say(0, b"w")] * 511
        )
        assert [len(await one) for one in waiting] == [600, 512, 1, 511]
        assert [len(commands) - 2 for _, commands in cluster.batches[1:]] == [600, 512, 512]


@in_virtual_time
async def test_calls_of_callers_that_gave_up_are_not_sent() -> None:
    cluster = Cluster()
    async with lanes_of(cluster) as pipelines:
        cluster.open.clear()
        first = asyncio.create_task(pipelines.transact([say(0, b"first")]))
        await quiet()
        gone = asyncio.create_task(pipelines.transact([say(0, b"gone")]))
        await quiet()
        gone.cancel()
        await quiet()
        cluster.open.set()
        await first
        await pipelines.transact([say(0, b"last")])
        assert [commands for _, commands in cluster.batches] == [[say(0, b"first")], [say(0, b"last")]]


@in_virtual_time
@pytest.mark.parametrize("most", ["QUEUE_COMMANDS", "QUEUE_BYTES"])
async def test_a_full_queue_refuses_and_has_room_again_when_calls_are_done(most: str) -> None:
    cluster = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, most, {"QUEUE_COMMANDS": 3, "QUEUE_BYTES": 15}[most])
        async with lanes_of(cluster) as pipelines:
            for _ in range(3):
                waiting = await behind(cluster, pipelines, [say(0, b"12345")] * 2, [say(0, b"refused")])
                assert await waiting[0] == [b"12345"] * 2
                with pytest.raises(Unavailable, match="too many publishes"):
                    await waiting[1]
                cluster.batches.clear()


@in_virtual_time
async def test_calls_that_are_not_taken_fail_each_at_its_own_deadline() -> None:
    pipelines, loop = Pipelines(cast(Any, Redis(None)), 2.0, Metrics(), Durability()), asyncio.get_running_loop()

    async def fails_after() -> float:
        started = loop.time()
        with pytest.raises(Unavailable, match="did not take the message in time"):
            await pipelines.transact([say(0, b"x")])
        return loop.time() - started

    for _ in range(2):  # the second time, the timer of the first has ended
        first = asyncio.create_task(fails_after())
        await later(1)
        cancelled = asyncio.create_task(fails_after())
        await later(1)
        last = asyncio.create_task(fails_after())
        await quiet()
        cancelled.cancel()
        assert [await first, await last] == pytest.approx([4.0, 4.0])


@in_virtual_time
async def test_one_callers_refused_command_is_not_the_others_failure() -> None:
    cluster = Cluster()
    cluster.answers["a", b"bad"] = ResponseError("WRONGTYPE no")
    async with lanes_of(cluster) as pipelines:
        good, bad, late = await behind(
            cluster,
            pipelines,
            [say(0, b"1"), say(0, b"2")],
            [say(0, b"3"), say(0, b"bad")],
            [say(0, b"4"), say(0, b"5")],
        )
        assert (await good, await late) == ([b"1", b"2"], [b"4", b"5"])
        with pytest.raises(Unavailable):
            await bad
        assert cluster.stale == 0


@in_virtual_time
async def test_a_lost_connection_fails_the_batch_and_only_it() -> None:
    cluster = Cluster()
    async with lanes_of(cluster) as pipelines:
        cluster.fails = ConnectionResetError("reset")
        both = await asyncio.gather(
            pipelines.transact([say(0, b"x")]), pipelines.transact([say(1, b"y")]), return_exceptions=True
        )  # fmt: skip
        assert all(isinstance(one, Unavailable) for one in both)
        assert cluster.stale
        cluster.fails = None
        assert await pipelines.transact([say(0, b"z")]) == [b"z"]


@in_virtual_time
async def test_redis_that_does_not_answer_in_time_fails_the_call_at_its_deadline() -> None:
    cluster = Cluster()
    async with lanes_of(cluster) as pipelines:
        cluster.open.clear()
        for _ in range(2):
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await pipelines.transact([say(0, b"x")])
            assert asyncio.get_running_loop().time() == pytest.approx(started + 2.0)
        frozen = asyncio.create_task(pipelines.transact([say(0, b"x")]))
        await later(0.5)
        started = asyncio.get_running_loop().time()
        cluster.owners[1] = "b"
        cluster.open.set()
        assert await pipelines.transact([say(1, b"y")]) == [b"y"]
        assert await frozen == [b"x"]
        assert asyncio.get_running_loop().time() < started + 0.1


@in_virtual_time
async def test_a_call_of_two_servers_waits_for_both_and_answers_in_order() -> None:
    cluster = Cluster()
    cluster.owners[1] = "b"
    async with lanes_of(cluster) as pipelines:
        assert await pipelines.transact([say(0, b"x"), say(1, b"y"), say(0, b"z")]) == [b"x", b"y", b"z"]
        assert sorted(server for server, _ in cluster.batches) == ["a", "b"]


@in_virtual_time
@pytest.mark.parametrize("size", [1, 2])
async def test_commands_of_a_slot_that_moved_go_to_its_new_server_in_order_before_later_ones(size: int) -> None:
    cluster = Cluster()
    cluster.answers["a", b"x"] = MovedError("1 b:1")
    async with lanes_of(cluster) as pipelines:
        waiting = await behind(cluster, pipelines, [say(1, b"x")] * size, [say(2, b"other")])
        await quiet()
        late = asyncio.create_task(pipelines.transact([say(1, b"late")]))  # not past those that wait
        assert await waiting[1] == [b"other"]
        assert await waiting[0] == [b"x"] * size
        assert await late == [b"late"]
        assert cluster.is_moved == [(1, "b:1")]
        sent = [command for server, commands in cluster.batches if server == "b:1" for command in commands]
        assert [command for command in sent if command[0] == "PUBLISH"] == [say(1, b"x")] * size + [say(1, b"late")]


@in_virtual_time
async def test_a_slot_on_its_way_is_asked_for_again_where_it_was() -> None:
    cluster = Cluster()
    cluster.answers["a", b"x"] = AskError("1 b:1")
    async with lanes_of(cluster) as pipelines:
        call = asyncio.create_task(pipelines.transact([say(1, b"x")]))
        await quiet()
        assert not call.done() and cluster.is_moved == []
        del cluster.answers["a", b"x"]
        await later(pipeline.MOVE_SECONDS)
        assert await call == [b"x"]
        assert [server for server, _ in cluster.batches] == ["a", "a"]


@in_virtual_time
async def test_a_server_that_became_a_replica_is_left_and_what_it_answered_is_not_believed() -> None:
    cluster = Cluster()
    cluster.role_due = True
    async with lanes_of(cluster) as pipelines:
        assert await pipelines.transact([say(0, b"x")]) == [b"x"]
        assert cluster.batches[0][1][-1] == ("ROLE",)
        cluster.replica = True
        with pytest.raises(Unavailable, match="READONLY"):
            await pipelines.transact([say(0, b"y")])
        assert cluster.left == ["a"]
        cluster.role_due = False
        assert await pipelines.transact([say(0, b"z")]) == [b"z"]


@in_virtual_time
async def test_the_lane_of_a_server_without_slots_ends_when_its_queue_is_sent() -> None:
    cluster = Cluster()
    pipelines = Pipelines(cast(Any, cluster), 2.0, Metrics(), Durability())
    tasks: list[asyncio.Task[None]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "send", lambda _, *given: cluster.exchange(*given))
        queued = asyncio.create_task(pipelines.transact([say(0, b"early")]))
        await quiet()
        assert cluster.batches == [], "lanes stand still until they are started"
        pipelines.start(lambda work: tasks.append(asyncio.get_running_loop().create_task(work)))
        assert await queued == [b"early"]
        cluster.servers, cluster.owners = ("b",), {0: "b"}
        assert await pipelines.transact([say(0, b"x")]) == [b"x"]
        await quiet()
        assert [task.done() for task in tasks] == [True, False]
        tasks[1].cancel()

"""Services on a real Redis: start order, published states and singletons, also during faults."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.broker.fence import Fenced
from gateway.core import message, service_records
from gateway.core.service_records import ServiceStatus
from gateway.services.manager import Run, Service, ServiceError, ServiceManager
from gateway.services.states import STEP_SERVICES, OutdatedReport, ServiceReport, TooManyServices
from tests.conftest import Connect
from tests.integration.test_cli import gateway
from tests.kit.client import Api
from tests.kit.cluster import Cluster
from tests.kit.node import NAMESPACE, Node
from tests.kit.process import Process, clean_environment
from tests.kit.redis import Redis
from tests.kit.waiting import eventually

LEASE_SECONDS = 2.0
RULES = '[[topic]]\npattern = "counter"\nhistory = 100000\n'


@contextmanager
def counters(number: int, redis: Redis, folder: Path) -> Iterator[list[Process]]:
    """So many programs with the same singleton."""
    programs: list[Process] = []
    try:
        for at in range(number):
            command = [sys.executable, "-m", "tests.counter", redis.url, NAMESPACE, f"c{at}", str(LEASE_SECONDS)]
            programs.append(Process(f"counter {at}", command, folder / f"counter{at}.log", clean_environment()))
            programs[-1].spawn()
        yield programs
    finally:
        for program in programs:
            program.close()


class Stream:
    """What subscribers and the stream itself have of the topic `counter`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.ticks: list[dict[str, Any]] = []  # over restarts of Redis

    def read(self) -> list[dict[str, Any]]:
        """All ticks in the stream of this Redis, in order, each with the time at which Redis had it."""
        entries = self._redis.cli("XRANGE", f"{NAMESPACE}ws:history:{{counter}}", "-", "+")
        return [{**orjson.loads(message.unpack(about["m"].encode())[3]), "ms": int(about["t"])} for _, about in entries]

    def leader(self) -> str:
        """Who ticked last."""
        ticks = self.read()
        return str(ticks[-1]["by"]) if ticks else ""


def check(ticks: list[dict[str, Any]], allowed_gap: float) -> None:
    """Tokens never go down, and each takeover was quick."""
    tokens = [tick["token"] for tick in ticks]
    assert tokens == sorted(tokens), "a tick of an old leader came in behind a newer one's"
    gaps = [(b["ms"] - a["ms"]) / 1000 for a, b in itertools.pairwise(ticks) if a["token"] != b["token"]]
    assert max(gaps, default=0.0) <= allowed_gap, gaps


async def test_a_singleton_counts_on_through_death_sleep_and_a_restarted_redis(
    cluster: Callable[..., Cluster], redis: Redis, folder: Path, connect: Connect
) -> None:
    (folder / "topics.toml").write_text(RULES)
    nodes = cluster(3, topics=folder / "topics.toml", lease_seconds=LEASE_SECONDS)
    listener = await connect(nodes[2])
    await listener.subscribe("counter")
    stream = Stream(redis)
    with counters(3, redis, folder) as programs:

        def led_by(*names: str) -> bool:
            ticks = stream.read()
            return bool(ticks) and ticks[-1]["by"] in names

        def others(name: str) -> list[str]:
            return [f"c{at}" for at in range(3) if f"c{at}" != name and programs[at].alive]

        await eventually(lambda: len(stream.read()) > 5, 20)
        # kill -9
        first = stream.leader()
        programs[int(first[1])].kill()
        await eventually(lambda: led_by(*others(first)), LEASE_SECONDS + 8)
        programs[int(first[1])].spawn()
        # asleep past its lease: it wakes and believes that it leads
        second = stream.leader()
        sleeper = programs[int(second[1])]
        sleeper.freeze()
        await eventually(lambda: led_by(*others(second)), LEASE_SECONDS + 8)
        before = len(stream.read())
        sleeper.thaw()
        await eventually(lambda: len(stream.read()) > before + 10)
        await eventually(
            lambda: "service lost its lease" in "\n".join(sleeper.log()), what="the sleeper logs that its lease is lost"
        )
        check(stream.read(), LEASE_SECONDS + 1)
        earlier = stream.read()
        # Redis forgets everything
        redis.stop()
        redis.start()
        await eventually(lambda: len(stream.read()) > 10, 20)
        later = stream.read()
        check(later, LEASE_SECONDS + 1)
        assert later[0]["token"] >= earlier[-1]["token"], "tokens grow over a Redis that has forgotten them"
        sent = {key: value for key, value in later[-1].items() if key != "ms"}
        await eventually(lambda: sent in listener.data("counter"))
    received = [tick["token"] for tick in listener.data("counter")]
    assert received == sorted(received)
    said = [(tick["by"], tick["token"], tick["tick"]) for tick in listener.data("counter")]
    assert len(said) == len(set(said)), "each tick once"


async def test_a_woken_leader_is_refused_by_redis_itself(
    cluster: Callable[..., Cluster], redis: Redis, folder: Path
) -> None:
    (folder / "topics.toml").write_text(RULES)
    cluster(1, topics=folder / "topics.toml")
    runs: dict[str, Run] = {}
    # Long leases: within the test neither renews its own.
    async with ServiceManager.connect(redis.url, name="old", lease_seconds=60) as old:

        async def start(run: Run) -> None:
            runs.setdefault("old", run)

        old.register("job", start=start, singleton=True)
        await old.start()
        await eventually(lambda: "old" in runs)
        assert await runs["old"].publish("counter", "mine") is not None
        # As if the process had slept: another one gets its lease in Redis, without a notice.
        redis.cli("DEL", f"{NAMESPACE}service:{{job}}:leader")
        async with ServiceManager.connect(redis.url, name="new", lease_seconds=60) as new:

            async def begin(run: Run) -> None:
                await run.publish("counter", "its successor's")
                runs["new"] = run

            new.register("job", start=begin, singleton=True)
            await new.start()
            await eventually(lambda: "new" in runs)
            assert runs["new"].token > runs["old"].token
            with pytest.raises(Fenced, match="job"):
                await runs["old"].publish("counter", "too late")


async def test_states_are_stale_without_redis_and_the_newest_is_written_after(redis: Redis) -> None:
    async with (
        ServiceManager.connect(redis.url, name="a") as mine,
        ServiceManager.connect(redis.url, name="b") as other,
    ):
        assert await mine.update_service_state("feed", status="active", operation="first")
        seen = await other.get_service_state("feed")
        assert seen is not None and (seen["status"], seen["stale"]) == ("active", False)
        redis.stop()
        assert not await mine.update_service_state("feed", status="degraded", error="slow")
        assert not await mine.update_service_state("feed", status="error", error="down", operation="last")
        own, seen = await mine.get_service_state("feed"), await other.get_service_state("feed")
        assert own is not None and (own["status"], own["stale"], own["lastError"]) == ("error", True, "down")
        assert seen is not None and (seen["status"], seen["stale"]) == ("active", True)
        assert seen["ageSeconds"] > 0
        assert await other.get_service_state("unknown") is None
        redis.start()

        async def newest() -> bool:
            found = await other.get_service_state("feed")
            return found is not None and not found["stale"] and found["instances"][0].get("lastOperation") == "last"

        await eventually(newest, 20)


async def test_an_older_write_never_replaces_a_newer(redis: Redis) -> None:
    async with ServiceManager.connect(redis.url, name="a") as services:
        received: list[tuple[str, dict[str, Any]]] = []
        services.watch(lambda name, state: received.append((name, state)))
        await services.update_service_state("feed", status="active")
        states = services.states
        [newer] = await states.write([ServiceReport("feed", "other", {"status": "error"}, 5000, 100)])
        [older] = await states.write([ServiceReport("feed", "other", {"status": "active"}, 5000, 99)])
        assert newer == 100 and isinstance(older, OutdatedReport)
        found = await services.get_service_state("feed")
        assert found is not None and found["status"] == ServiceStatus.ERROR
        assert [row["status"] for row in found["instances"]] == ["active", "error"]
        await eventually(lambda: ("feed", "error") in [(name, state["status"]) for name, state in received])


async def test_a_failing_service_holds_back_those_that_need_it_and_no_other(
    plain: Cluster, api: Callable[[Node], Api]
) -> None:
    graph = {
        "db": [], "queue": [], "prices": ["db"], "contests": ["db"], "wallet": ["db", "queue"], "chain": [],
        "swaps": ["chain", "wallet"], "feed": ["prices"], "alerts": ["feed"], "mail": ["queue"],
        "reports": ["contests", "mail"], "clock": [],
    }  # fmt: skip
    broken = True

    async def start(run: Run) -> None:
        if run.name == "chain" and broken:
            raise ConnectionError("no answer from the chain")

    async with ServiceManager.connect(plain.redis.url, name="app") as services:
        services.register_all(Service(name=n, start=start, depends_on=tuple(of)) for n, of in graph.items())
        await services.start()
        at = api(plain[1])

        async def states() -> dict[str, str]:
            found = (await at.get("/api/services"))["services"]
            return {service["service"]: service["status"] for service in found if service["service"] in graph}

        async def settled() -> bool:
            said = await states()
            others = {said.get(name) for name in graph if name not in ("chain", "swaps")}
            return (
                said.get("chain") in ("error", "starting") and said.get("swaps") == "starting" and others == {"active"}
            )

        await eventually(settled, 20)
        chain = await at.get("/api/services/chain")
        assert "no answer from the chain" in chain["lastError"]
        assert [other["service"] for other in chain["dependants"]] == ["swaps"]
        assert chain["instances"][0]["stats"]["failures"] >= 1
        swaps = await at.get("/api/services/swaps")
        assert [other["service"] for other in swaps["dependencies"]] == ["chain", "wallet"]
        assert swaps["instances"][0]["waitsFor"] == "chain"
        tree = (await gateway(plain[0], "services", "--graph")).out
        assert "swaps  starting, waits for chain" in tree
        assert "├─ prices  active" in tree
        broken = False
        await eventually(lambda: _all_active(states), 30, "all are active once the chain answers")


async def _all_active(states: Callable[[], Any]) -> bool:
    return set((await states()).values()) == {"active"}


# ---- what the nodes themselves do


async def test_administrators_get_every_change_once_although_the_publisher_dies(
    cluster: Callable[..., Cluster], connect: Connect, api: Callable[[Node], Api]
) -> None:
    nodes = cluster(3, lease_seconds=LEASE_SECONDS)
    http = api(nodes[0]).http

    async def announcing() -> str:
        """The node that publishes the states; "" if there is none."""
        found = (await http.get("/api/services/gateway.announcer")).json()
        return next((str(i["instance"]) for i in found.get("instances", ()) if i["alive"] and i["running"]), "")

    async def report(status: str, **more: Any) -> None:
        body = {"status": status, "leaseSeconds": 60, **more}
        assert (await http.put("/api/services/feed", json=body)).status_code == 200

    await eventually(announcing)
    admin = await connect(nodes[0], user="root", role="admin")
    await admin.subscribe("service", "circuit-breaker")
    refused = await (await connect(nodes[0], user="ann")).subscribe("service")
    assert refused["code"] == 4012

    def sent(topic: str) -> list[Any]:
        return [m["data"] for m in admin.received(type="DATA", topic=topic) if not m.get("initialData")]

    def feed(status: str) -> bool:
        return any(s["service"] == "feed" and s["status"] == status for m in sent("service") for s in m["services"])

    await report("active")
    await eventually(lambda: feed("active"))
    await report("error", lastError="no answer", stats={"breaker": "open"})
    await eventually(lambda: feed("error"))
    await eventually(lambda: any(b["service"] == "feed" for m in sent("circuit-breaker") for b in m["breakers"]))
    snapshot = await connect(nodes[1], user="root", role="admin")
    await snapshot.subscribe("service")
    assert snapshot.received(type="DATA", topic="service")[0]["initialData"]
    assert snapshot.data("service")[0]["status"] == "error"

    async def overall() -> bool:
        answer = await admin.ask(type="REQUEST", topic="system", action="getStatus")
        return answer.get("action") == "getStatus" and answer["data"]["services"] == "error"

    await eventually(overall)
    leader = await announcing()
    at = next(node for node in nodes if node.name == leader.split(".")[0])
    if at is nodes[0]:  # whom we ask
        http = api(nodes[1]).http
        admin = await connect(nodes[1], user="root", role="admin")
        await admin.subscribe("service", "circuit-breaker")
    await eventually(lambda: at.metric("gateway_service_instances", service="feed", status="error") == 1)
    assert at.metric("gateway_service_operations_total", service="gateway.announcer") > 0
    at.kill()

    async def another() -> bool:
        return await announcing() not in ("", leader)

    await eventually(another, LEASE_SECONDS + 10)
    await report("degraded")
    await eventually(lambda: feed("degraded"))
    said = [
        s["status"] for m in sent("service") if "feed" in m["changed"] for s in m["services"] if s["service"] == "feed"
    ]
    assert said.count("degraded") == 1, "of one change one message"


async def test_a_service_whose_lease_ends_is_offline_with_its_last_error(
    plain: Cluster, api: Callable[[Node], Api]
) -> None:
    http = api(plain[0]).http
    body = {"status": "degraded", "leaseSeconds": 1, "lastError": "disk nearly full"}
    assert (await http.put("/api/services/dying", json=body)).status_code == 200

    async def offline() -> bool:
        found = (await http.get("/api/services/dying")).json()
        return (found["status"], found["lastError"]) == ("offline", "disk nearly full")

    await eventually(offline)
    assert (await http.delete("/api/services/dying")).status_code == 200


async def test_the_documented_redis_commands_work(plain: Cluster, api: Callable[[Node], Api]) -> None:
    redis, now = plain.redis, int(plain.redis.cli("TIME")[0]) * 1000
    key = f"{NAMESPACE}service:{{direct}}"
    redis.cli("ZADD", f"{NAMESPACE}services", "GT", now + 30_000, "direct")
    redis.cli("HSET", key, "worker-1", f'{{"status":"active","leaseEnds":{now + 30_000},"version":1}}')
    redis.cli("HSET", key, "worker-2", "active")
    found = await api(plain[1]).get("/api/services/direct")
    assert [(row["instance"], row["status"], row["alive"]) for row in found["instances"]] == [
        ("worker-1", "active", True), ("worker-2", "offline", False),
    ]  # fmt: skip
    assert "record is invalid" in found["instances"][1]["lastError"]
    assert found["status"] == "active"
    await api(plain[1]).delete("/api/services/direct")


async def test_the_list_of_services_has_a_bound(redis: Redis) -> None:
    async with ServiceManager.connect(redis.url, name="a") as services:
        for at in range(0, service_records.MAX_SERVICES, 50):
            verdicts = await services.states.write(
                [ServiceReport(f"s{name}", "i", {"status": "active"}, 60_000) for name in range(at, at + 50)]
            )
            assert all(isinstance(verdict, int) for verdict in verdicts)
        [verdict] = await services.states.write([ServiceReport("one-more", "i", {"status": "active"}, 60_000)])
        assert isinstance(verdict, TooManyServices)
        assert len(await services.states.read_all()) == service_records.MAX_SERVICES
        with pytest.raises(ServiceError, match="lists at most 200 services"):
            await services.update_service_state("one-more", status="active")
        [known] = await services.states.write([ServiceReport("s7", "i", {"status": "error"}, 60_000)])
        assert isinstance(known, int)


@pytest.mark.parametrize(
    ("about", "complaint"),
    [
        ({"name": "no name"}, "cannot be a service's name"),
        ({"name": "twice"}, "registered already"),
        ({"name": "s", "depends_on": ["absent"]}, "s depends on absent: no such service is registered"),
        ({"name": "s", "depends_on": ["s"]}, "s -> s"),
        ({"name": "s", "check_seconds": 0}, "check_seconds"),
    ],
)
async def test_what_cannot_be_registered_is_refused_in_a_sentence(
    redis: Redis, about: dict[str, Any], complaint: str
) -> None:
    async with ServiceManager.connect(redis.url, name="a") as services:
        services.register("twice")
        with pytest.raises(ServiceError, match=complaint):
            services.register(**about)
        circle = [Service(name="x", depends_on=("y",)), Service(name="y", depends_on=("x",)), Service(name="z")]
        with pytest.raises(ServiceError, match=r"depend on each other: (x -> y -> x|y -> x -> y)"):
            services.register_all(circle)
        assert [supervisor.service.name for supervisor in services.supervisors()] == ["twice"], "none of them"


async def test_services_stop_in_reverse_and_one_that_does_not_keeps_none_from_it(redis: Redis) -> None:
    stopped: list[str] = []

    async def stop(run: Run) -> None:
        stopped.append(run.name)
        if run.name == "b":
            raise RuntimeError("no")

    async with ServiceManager.connect(redis.url, name="a") as services, ServiceManager.connect(redis.url) as other:
        for name, needs in (("a", ()), ("b", ("a",)), ("c", ("b",))):
            services.register(name, stop=stop, depends_on=needs)
        await services.start()
        await eventually(lambda: all(supervisor.up.is_set() for supervisor in services.supervisors()))
        await services.stop()
        assert stopped == ["c", "b", "a"]
        found = await other.get_service_state("b")
        assert found is not None and (found["status"], found["lastError"]) == ("stopped", "stop: no")


async def test_a_service_that_was_taken_out_of_the_index_is_in_it_again_with_its_next_renewal(redis: Redis) -> None:
    async with ServiceManager.connect(redis.url, name="a", lease_seconds=1) as services:
        services.register("feed")
        await services.start()

        async def listed() -> bool:
            return bool(redis.cli("ZCARD", f"{NAMESPACE}services"))

        await eventually(listed)
        before = redis.cli("ZSCORE", f"{NAMESPACE}services", "feed")
        version = services.change_marker()
        assert await services.states.forget_service("feed")
        await eventually(lambda: services.change_marker() != version)
        await eventually(listed, 3)
        assert float(redis.cli("ZSCORE", f"{NAMESPACE}services", "feed")) > float(before)


async def test_renewals_leave_the_index_alone_until_it_is_due(redis: Redis) -> None:
    async with ServiceManager.connect(redis.url, name="a", lease_seconds=0.4) as services:
        services.register("feed")
        await services.start()
        key, index = f"{NAMESPACE}service:{{feed}}", f"{NAMESPACE}services"
        await eventually(lambda: all(supervisor.up.is_set() for supervisor in services.supervisors()))
        await eventually(lambda: '"status":"active"' in (redis.cli("HGET", key, services.instance) or ""))

        async def renewed(times: int) -> None:
            for _ in range(times):
                record = redis.cli("HGET", key, services.instance)
                await eventually(partial(differs, record))

        def differs(record: str) -> bool:
            return bool(redis.cli("HGET", key, services.instance) != record)

        await renewed(2)
        redis.cli("UNLINK", index)
        await renewed(3)
        assert not redis.cli("EXISTS", index)
        services._enlist_due = 0.0  # as after `ENLIST_SECONDS`
        await renewed(2)
        assert redis.cli("ZRANGE", index, 0, -1) == ["feed"]
        await renewed(3)
        redis.cli("UNLINK", index)
        await services.update_service_state("feed", status="degraded")
        assert redis.cli("ZRANGE", index, 0, -1) == ["feed"], "a change puts the service into the index"


async def test_more_services_than_one_step_takes_have_their_own_verdicts_and_records(redis: Redis) -> None:
    async with ServiceManager.connect(redis.url, name="a") as services:
        names = [f"s{at:02}" for at in range(2 * STEP_SERVICES + 2)]
        old = STEP_SERVICES + 1
        versions = [10**15 + at for at in range(len(names))]
        first = await services.states.write([ServiceReport(names[old], "i", {"status": "error"}, 60_000, 2 * 10**15)])
        assert first == [2 * 10**15]
        verdicts = await services.states.write(
            [
                ServiceReport(name, "i", {"status": "active", "lastOperation": name}, 60_000, version)
                for name, version in zip(names, versions, strict=True)
            ]
        )
        assert isinstance(verdicts.pop(old), OutdatedReport)
        assert verdicts == [version for at, version in enumerate(versions) if at != old]
        found = await services.states.read_all()
        assert [(one["service"], one["instances"][0].get("lastOperation")) for one in found] == [
            (name, None if at == old else name) for at, name in enumerate(names)
        ]

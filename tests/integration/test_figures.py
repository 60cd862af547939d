"""The figures that nodes publish on a topic for administrators."""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.topic_rules import STATS
from tests.conftest import Connect
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster
from tests.kit.waiting import eventually


async def test_only_administrators_receive_the_figures_of_every_node(
    plain: Cluster, connect: Connect, api: Callable[[Front], Api]
) -> None:
    stranger, ann = await connect(plain[0]), await connect(plain[0], user="ann")
    assert (await stranger.subscribe(STATS))["code"] == 4010
    assert (await ann.subscribe(STATS))["code"] == 4012

    admin = await connect(plain[0], user="root", role="admin")
    assert (await admin.publish(STATS, {}))["code"] == 4403
    assert (await admin.subscribe(STATS))["status"] == "success"
    await eventually(lambda: {f["name"] for f in admin.data(STATS)} == {"n1", "n2", "n3"}, 20)
    for report in admin.data(STATS):
        assert report["ready"] is True
        assert (report["draining"], report["moving"], report["reasons"]) == (False, False, [])
        assert report["memoryBytes"] > 1_000_000
        assert set(report["delays"]) == {"relay", "loop", "redis"}
    mine = next(f for f in reversed(admin.data(STATS)) if f["name"] == "n1")
    assert mine["clients"] >= 3

    # Earlier figures are in the history, for a console that opens now and for a key without a token.
    history = await api(plain[1]).get(f"/api/topics/{STATS}/history", limit=1000)
    assert {m["data"]["name"] for m in history["messages"]} == {"n1", "n2", "n3"}


async def test_figures_count_what_is_delivered(plain: Cluster, connect: Connect, api: Callable[[Front], Api]) -> None:
    admin, subscriber = await connect(plain[0], user="root", role="admin"), await connect(plain[1])
    await admin.subscribe(STATS)
    await subscriber.subscribe("counted")
    await api(plain[2]).publish_all([{"topic": "counted", "data": at} for at in range(500)])

    def delivered() -> float:
        report = [f for f in admin.data(STATS) if f["name"] == "n2"]
        return float(sum(f["rates"]["delivered"] * f["seconds"] for f in report))

    await eventually(lambda: delivered() >= 495, 30)  # rates are rounded
    seen = max((f for f in admin.data(STATS) if f["name"] == "n2"), key=lambda f: f["rates"]["delivered"])
    assert 0 < seen["delays"]["relay"]["p50"] <= seen["delays"]["relay"]["p99"] < 20_000


async def test_the_figures_show_that_a_node_drains(cluster: Callable[..., Cluster], connect: Connect) -> None:
    nodes = cluster(2, drain_seconds=8)
    admin = await connect(nodes[0], user="root", role="admin")
    await admin.subscribe(STATS)
    await connect(nodes[1])
    nodes[1].terminate()
    await eventually(lambda: any(f["name"] == "n2" and f["draining"] for f in admin.data(STATS)), 20)
    report = next(f for f in admin.data(STATS) if f["name"] == "n2" and f["draining"])
    assert report["ready"] is False
    assert "draining" in report["reasons"]

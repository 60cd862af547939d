"""Centrifugo's server API with its Python library `cent`, unmodified, through real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conftest import Connect
from tests.kit.client import Client, Front
from tests.kit.cluster import Cluster
from tests.kit.node import API_KEY
from tests.kit.waiting import eventually

Start = Callable[..., Cluster]

library: Any = pytest.importorskip("cent", reason="the extra dev installs it")

RULES = """
[[topic]]
pattern = "recent"
history = 10

[[topic]]
pattern = "kept*"
history = 100
presence = true
"""


class Both:
    """Both clients of the library; a method is called by one or the other."""

    def __init__(self, front: Front, key: str, *, synchronous: bool) -> None:
        url = f"{front.api_url}/api"
        self._sync = library.Client(url, key) if synchronous else None
        self._async = None if synchronous else library.AsyncClient(url, key)

    async def call(self, name: str, request: Any) -> Any:
        """The result of the method `name`."""
        if self._sync is not None:
            return await asyncio.to_thread(getattr(self._sync, name), request)
        return await getattr(self._async, name)(request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sync is not None:
            self._sync.close()
        if self._async is not None:
            await self._async.close()


@pytest.mark.parametrize("synchronous", [True, False], ids=["sync", "async"])
async def test_every_method_of_the_library(cluster: Start, connect: Connect, folder: Path, synchronous: bool) -> None:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    one, two = cluster(2, topics=rules, centrifugo=1)
    ann, bob = await connect(one, user="ann"), await connect(two, user="bob")
    await ann.subscribe("kept", "plain")
    async with Both(two, API_KEY, synchronous=synchronous) as cent:
        await use(cent, ann, bob)
    async with Both(two, "no key", synchronous=synchronous) as stranger:
        with pytest.raises(library.CentUnauthorizedError):
            await stranger.call("info", library.InfoRequest())


async def use(cent: Both, ann: Client, bob: Client) -> None:
    """Call all methods, about two connected clients."""
    published = await cent.call(
        "publish", library.PublishRequest(channel="kept", data={"n": 1}, idempotency_key="a key")
    )
    assert published.offset == 1 and published.epoch
    again = await cent.call("publish", library.PublishRequest(channel="kept", data={"n": 1}, idempotency_key="a key"))
    assert again == published
    broadcast = await cent.call("broadcast", library.BroadcastRequest(channels=["kept", "plain", "a b"], data=2))
    assert [response.error.code if response.error else None for response in broadcast.responses] == [None, None, 107]
    assert broadcast.responses[0].result.offset == 2
    await ann.hear(type="DATA", topic="plain", data=2)
    assert ann.data("kept") == [{"n": 1}, 2]

    history = await cent.call("history", library.HistoryRequest(channel="kept", limit=-1))
    assert [one.data for one in history.publications] == [{"n": 1}, 2]
    since = library.StreamPosition(offset=1, epoch=history.epoch)
    assert [
        one.data
        for one in (
            await cent.call("history", library.HistoryRequest(channel="kept", limit=9, since=since))
        ).publications
    ] == [2]
    await cent.call("history_remove", library.HistoryRemoveRequest(channel="kept"))
    assert (await cent.call("history", library.HistoryRequest(channel="kept", limit=-1))).publications == []

    await cent.call("subscribe", library.SubscribeRequest(user="bob", channel="kept"))
    await bob.hear(type="SYSTEM", action="subscribed")

    async def both() -> bool:  # joins are written ten times a second
        presence = (await cent.call("presence", library.PresenceRequest(channel="kept"))).presence
        return {client: about.user for client, about in presence.items()} == {ann.id: "ann", bob.id: "bob"}

    await eventually(both)
    stats = await cent.call("presence_stats", library.PresenceStatsRequest(channel="kept"))
    assert (stats.num_clients, stats.num_users) == (2, 2)
    assert {node.name for node in (await cent.call("info", library.InfoRequest())).nodes} == {"n1", "n2"}
    assert "kept" in (await cent.call("channels", library.ChannelsRequest(pattern="k*"))).channels
    await cent.call("unsubscribe", library.UnsubscribeRequest(user="bob", channel="kept", client=bob.id))
    await bob.hear(type="SYSTEM", action="unsubscribed")

    await cent.call("publish", library.PublishRequest(channel="recent", data="missed"))
    requests = [
        library.PublishRequest(channel="plain", data=3),
        library.InfoRequest(),
        library.PresenceStatsRequest(channel="kept"),
    ]
    replies = (await cent.call("batch", library.BatchRequest(requests=requests, parallel=True))).replies
    assert len(replies) == 3 and len(replies[1].nodes) == 2
    await ann.hear(type="DATA", topic="plain", data=3)

    await cent.call("refresh", library.RefreshRequest(user="ann", client=ann.id, expired=True))
    assert await ann.closed() == 3005
    custom = library.Disconnect(code=4000, reason="moved")
    for about in ({"whitelist": [bob.id]}, {"client": bob.id, "session": f"{ann.id}.secret"}, {"client": "other"}):
        await cent.call("disconnect", library.DisconnectRequest(user="bob", **about))
    since, heard = library.StreamPosition(offset=0, epoch=""), len(bob.messages)
    about = {"client": bob.id, "session": f"{bob.id}.secret", "recover_since": since, "data": {"why": "back"}}
    await cent.call("subscribe", library.SubscribeRequest(user="bob", channel="recent", **about))
    notice = await bob.hear(type="SYSTEM", action="subscribed", start=heard)
    assert notice["data"]["data"] == {"why": "back"} and bob.data("recent") == ["missed"]
    await cent.call("disconnect", library.DisconnectRequest(user="bob", disconnect=custom))
    assert await bob.closed() == 4000

    with pytest.raises(library.CentApiResponseError) as refused:
        await cent.call("publish", library.PublishRequest(channel="system", data=1))
    assert refused.value.code == 103


async def test_without_the_setting_there_is_no_such_api(plain: Cluster) -> None:
    async with Both(plain[0], API_KEY, synchronous=False) as cent:
        with pytest.raises(library.CentUnauthorizedError):  # our own API asks for another header
            await cent.call("publish", library.PublishRequest(channel="a", data=1))

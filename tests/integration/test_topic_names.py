"""Topics with every permitted character, through real nodes: sockets, event streams, Redis and the HTTP API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

import orjson

from tests.conftest import Connect
from tests.kit.client import Api, Front
from tests.kit.cluster import Cluster

Start = Callable[..., Cluster]

RULES = """
[[topic]]
pattern = "odd:*"
history = 10
presence = true
publish = "subscriber"
"""
# Each character that a part of the gateway gives a meaning: JSON, URLs, HTML, event ids, globs, Redis keys, headers.
NAMES = [
    'odd:quote"back\\slash', "odd:a=e:1,b=e:2", "odd:%41%2f%", "odd:?x=1&y#z", "odd:/../;..", "odd:[a-z]?^$|()",
    "odd:<script>alert(1)</script>", "odd:'--`~!@+", "odd::meta", "odd:42,17",
]  # fmt: skip


async def test_a_topic_of_any_characters_is_one_topic_everywhere(
    cluster: Start, connect: Connect, folder: Path, api: Callable[[Front], Api]
) -> None:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    one, two = cluster(2, topics=rules)
    ann, bob = await connect(one, user="ann"), await connect(two, user="bob")
    for name in NAMES:
        assert (await ann.subscribe(name))["topics"] == [name]
        assert (await ann.publish(name, 1))["topic"] == name
        await api(two).publish(name, 2)
        await ann.hear(type="DATA", topic=name, data=2)
        place = (await bob.subscribe(name, recover={name: {"epoch": "", "offset": 0}}))["positions"][name]
        assert (place["offset"], place["recovered"]) == (2, False)
    for name in NAMES:
        await ann.publish(name, 3)
        await bob.hear(type="DATA", topic=name, data=3)
        assert bob.data(name) == [3]
        at = f"/api/topics/{quote(name, safe='')}"
        assert (await api(one).get(at))["topic"] == name
        assert [message["data"] for message in (await api(one).get(f"{at}/history"))["messages"]] == [1, 2, 3]
        assert {member["user"] for member in (await api(two).get(f"{at}/presence"))["members"]} == {"ann", "bob"}
        await api(two).delete(f"/api/clients/{ann.id}/topics/{quote(name, safe='')}")
        await ann.hear(type="SYSTEM", action="unsubscribed", data={"topics": [name], "reason": "by the operator"})


async def test_an_event_stream_recovers_topics_of_any_characters(
    cluster: Start, folder: Path, api: Callable[[Front], Api]
) -> None:
    rules = folder / "topics.toml"
    rules.write_text(RULES)
    [node] = cluster(1, topics=rules)
    http = api(node).http
    query = urlencode([("topic", name) for name in NAMES])
    last_id = ""
    for number in (1, 2):
        headers = {"last-event-id": last_id} if last_id else {}
        if number == 2:  # published while no stream is open
            for name in NAMES:
                await api(node).publish(name, 2)
        found: set[str] = set()
        async with http.stream("GET", f"/sse?{query}", headers=headers) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("id: "):
                    last_id = line.removeprefix("id: ")
                if number == 1 and "ACKNOWLEDGMENT" in line:
                    for name in NAMES:
                        await api(node).publish(name, 1)
                if line.startswith("data: ") and f'"data":{number}' in line:
                    found |= {name for name in NAMES if _topic(line) == name}
                if found == set(NAMES) and line == "":
                    break


def _topic(line: str) -> object:
    return orjson.loads(line.removeprefix("data: ")).get("topic")

"""gateway.delivery.presence and topic_queries: the clients of a topic and their info."""

from __future__ import annotations

from typing import cast

import orjson

from gateway.broker.history import History
from gateway.core.presence_set import ClientChanges, Member
from gateway.delivery.presence import MAX_LISTED, MAX_LISTED_BYTES, is_listed, member_json
from gateway.delivery.topic_queries import TopicQueries
from tests.unit.delivery.test_presence import At
from tests.unit.virtual_time import in_virtual_time

ANN, AGAIN = Member("n.b.1", "ann", b'{"name":"Ann"}'), Member("n.b.2", "ann")
SHOWN = {"clientId": "n.b.1", "user": "ann", "info": {"name": "Ann"}}


def test_a_member_has_info_only_if_its_token_has() -> None:
    assert orjson.loads(orjson.dumps(member_json(ANN))) == SHOWN
    assert member_json(AGAIN) == {"clientId": "n.b.2", "user": "ann"}


def test_a_list_is_bounded_in_entries_and_in_bytes_of_info() -> None:
    assert is_listed([AGAIN] * MAX_LISTED)
    assert not is_listed([AGAIN] * (MAX_LISTED + 1))
    heavy = ANN._replace(info=b'"%s"' % (b"x" * 2046))
    most = MAX_LISTED_BYTES // 2048
    assert is_listed([heavy] * most)
    assert not is_listed([heavy] * (most + 1))


@in_virtual_time
async def test_a_second_client_of_a_user_is_news_of_a_client_and_not_of_a_person() -> None:
    at = At()
    await at.open("t")
    at.hear("t", [ANN])
    await at.presence.flush(at.clients)
    at.hear("t", [AGAIN])
    await at.presence.flush(at.clients)
    at.hear("t", left=[ANN.client_id])
    await at.presence.flush(at.clients)
    assert at.clients.clients_shown == [
        ("t", ClientChanges(joined=[ANN])), ("t", ClientChanges(joined=[AGAIN])), ("t", ClientChanges(left=[ANN])),
    ]  # fmt: skip
    assert len(at.clients.shown) == 1
    assert orjson.loads(orjson.dumps(at.clients.shown[0][1]["joined"])) == [SHOWN]


@in_virtual_time
async def test_presence_is_listed_by_person_or_by_client() -> None:
    at = At()
    await at.open("t")
    at.hear("t", [ANN, AGAIN])
    queries = TopicQueries(cast(History, None), at.presence, at.clients.topic_members)
    people, clients = await queries.read_presence("t"), await queries.read_presence("t", clients=True)
    assert people["count"] == clients["count"] == 1
    assert orjson.loads(orjson.dumps(people["members"])) == [SHOWN]
    assert [one["clientId"] for one in clients["clients"]] == ["n.b.1", "n.b.2"]
    assert "members" not in clients
    assert await queries.count_presence("t") == (2, 1)
    at.hear("t", [Member(f"n.c.{number}", "ann") for number in range(MAX_LISTED)])
    assert await queries.read_presence("t", clients=True) == {"count": 1, "clientCount": 1002}
    assert "members" in await queries.read_presence("t")


@in_virtual_time
async def test_a_client_that_is_not_written_yet_is_listed_once() -> None:
    at = At()
    await at.open("t")
    at.clients.here["t"] = [ANN]
    queries = TopicQueries(cast(History, None), at.presence, at.clients.topic_members)
    assert await queries.count_presence("t") == (1, 1)
    for _ in ("before it is written", "after it"):
        people, clients = await queries.read_presence("t"), await queries.read_presence("t", clients=True)
        assert people["count"] == clients["count"] == 1
        assert (
            orjson.loads(orjson.dumps(people["members"])) == orjson.loads(orjson.dumps(clients["clients"])) == [SHOWN]
        )
        at.hear("t", [ANN])
    await at.presence.flush(at.clients)
    assert [about["count"] for _, about in at.clients.shown] == [1]  # the join is still news

"""No text, and no sequence of commands, makes a node fail."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kit.client import Client
from tests.kit.cluster import Cluster
from tests.kit.node import Node, token
from tests.kit.raw import RawSocket, frame

ANSWER_TYPES = {"SYSTEM", "ACKNOWLEDGMENT", "DATA", "RESPONSE", "ERROR", "pong"}

live = settings(
    max_examples=200, deadline=None, database=None,
    # The node is one for all examples: that it survives the one before is what is tested.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
topic = st.sampled_from(["a", "b:c", "contest", "portfolio", "admin", "system", "x" * 200, "x" * 201, "no good", ""])
request_id = st.none() | st.text(max_size=10) | st.integers(-5, 5) | json
tokens = st.sampled_from([token("ann"), token("root", "admin"), token("ann", seconds=-9), "rubbish", ""])


def command(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Messages of one type: any of its fields may be missing, or be anything."""
    choices = {name: values | json for name, values in fields.items()}
    return st.fixed_dictionaries({"type": st.just(kind)}, optional=choices | {"requestId": request_id})


commands = st.one_of(
    command("AUTH", authToken=tokens),
    command("SUBSCRIBE", topics=st.lists(topic, max_size=5), authToken=tokens, recover=json),
    command("UNSUBSCRIBE", topics=st.lists(topic, max_size=5)),
    command("PUBLISH", topic=topic, data=json, action=st.text(max_size=9), subtype=json, priority=st.integers()),
    command("REQUEST", topic=topic, action=st.sampled_from(["ping", "getStatus", "other"]), data=json),
    command("COMMAND", topic=topic, action=st.text(max_size=9), data=json),
    command("LOGS", logs=st.lists(st.dictionaries(st.text(max_size=9), json, max_size=3), max_size=30)),
    command("ping", timestamp=json),
)
nested = st.integers(1, 1100).map(lambda depth: '{"type":"ping","timestamp":' + "[" * depth + "]" * depth + "}")
texts = st.one_of(
    st.text(), json.map(lambda value: dumps(value)), commands.map(lambda value: dumps(value)), nested,
)  # fmt: skip

numbers = itertools.count(1)


def dumps(value: Any) -> str:
    """JSON with numbers of any size, which orjson would not write."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{dumps(name)}:{dumps(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumps, value)) + "]"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else orjson.dumps(value).decode()


async def still_answers(node: Node) -> None:
    """Fail unless a new client of `node` is welcomed and answered."""
    client = await Client.connect(node)
    mark = next(numbers)
    assert await client.ask(type="ping", timestamp=mark) == {"type": "pong", "timestamp": mark}
    await client.leave()


@live
@given(sent=st.lists(texts, max_size=12), user=st.sampled_from([None, "ann", "root"]))
async def test_any_texts_are_answered_and_the_socket_survives(
    plain: Cluster, sent: list[str], user: str | None
) -> None:
    client = await Client.connect(plain[0], user=user, role="admin" if user == "root" else "user")
    bystander = await Client.connect(plain[0])
    for text in sent:
        await client.socket.send(text)
    mark = f"end {next(numbers)}"
    await client.send(type="ping", timestamp=mark)
    await client.hear(type="pong", timestamp=mark)
    answers = [message for message in client.messages[1:] if message["type"] != "DATA" or "requestId" in message]
    assert {message["type"] for message in client.messages} <= ANSWER_TYPES
    asked = [text for text in sent if not text.startswith('{"type":"REQUEST"')]
    assert len(answers) >= len(asked) + 1, "some were not answered"
    assert not [message for message in client.received(type="ERROR") if message["code"] == 5000]
    assert (await bystander.ask(type="ping"))["type"] == "pong"
    await client.leave()
    await bystander.leave()
    await still_answers(plain[0])
    assert plain.complaints() == []


frames = st.builds(
    frame, st.integers(0, 15), st.binary(max_size=140) | commands.map(lambda value: dumps(value).encode()),
    final=st.booleans(), masked=st.integers(0, 9).map(bool), reserved=st.sampled_from([0, 0, 0, 0, 0, 0x40, 0x10]),
)  # fmt: skip


@live
@given(sent=st.lists(frames | st.binary(max_size=40), max_size=10), half_open=st.booleans())
async def test_any_frames_and_bytes_end_at_most_their_own_socket(
    plain: Cluster, sent: list[bytes], half_open: bool
) -> None:
    raw = await RawSocket.open(plain[0])
    try:
        raw.write(*sent)
        if half_open:
            raw.writer.write_eof()
            assert await raw.ended()
    finally:
        await raw.close()
    await still_answers(plain[0])
    assert plain.complaints() == []


@live
@given(request=st.binary(max_size=300), upgrade=st.booleans())
async def test_any_bytes_instead_of_a_handshake_end_at_most_their_own_socket(
    plain: Cluster, request: bytes, upgrade: bool
) -> None:
    if upgrade:
        request = b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + request + b"\r\n\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", plain[0].port))
        await loop.sock_sendall(connection, request)
        connection.shutdown(socket.SHUT_WR)
    await still_answers(plain[0])
    assert plain.complaints() == []

"""gateway.protocols.centrifugo: commands and replies of one client, in both encodings."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, cast

import orjson
import pytest

from gateway.core import events, frames, message
from gateway.core.commands import Auth, BackendCommand, Connect, RenewGrant, Request, Subscribe, Unsubscribe
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError, ProtocolViolation, UnsubscribeReason
from gateway.core.events import Delivered
from gateway.core.identity import Grant, Identity
from gateway.core.position import ANY_EPOCH, Position
from gateway.core.presence_set import ClientChanges, Member
from gateway.core.session import Session
from gateway.core.session_rules import SessionRules
from gateway.core.subscription_options import SubscriptionOptions
from gateway.core.tag_filter import TagFilter
from gateway.core.topic_rules import TopicRules
from gateway.protocols.centrifugo import conversation, protobuf
from gateway.protocols.centrifugo.protocol import JSON, PROTOBUF, Centrifugo

NOT_B = TagFilter({"op": "not", "nodes": [{"key": "k", "cmp": "in", "vals": ["b"]}]})

NOW_MS = 1_000_000


class Client:
    """A client of `protocol` at a node that does nothing by itself."""

    def __init__(self, protocol: Centrifugo = JSON, *, connected: bool = True) -> None:
        self.protocol = protocol
        rules = SessionRules(cast(Any, None), cast(Any, None), TopicRules(()), 10, leeway_seconds=5)
        self.session = Session(rules, Identity("ann", expires=NOW_MS / 1000 + 65))
        self.conversation = protocol.conversation("n.1", self.session)
        assert self.sent(events.Welcome("n.1", "n", "v", 25_000, {})) == []
        if connected:
            self.say(id=1, connect={})
            self.sent(events.Authenticated())

    def say(self, **command: Any) -> Any:
        [message] = self.split(command)
        return self.conversation.decode(message)

    def split(self, *commands: dict[str, Any]) -> list[bytes]:
        if self.protocol is JSON:
            return list(self.conversation.split(frames.TEXT, b"\n".join(map(orjson.dumps, commands))))
        written = [protobuf.with_length(protobuf.encode("Command", command)) for command in commands]
        return list(self.conversation.split(frames.BINARY, b"".join(written)))

    def sent(self, event: events.Event) -> list[Any]:
        return self.read(self.conversation.encode(event, NOW_MS))

    def read(self, data: bytes) -> list[Any]:
        replies: list[Any] = []
        for opcode, payload in frames.split(data):
            if self.protocol is JSON:
                assert opcode == frames.TEXT
                replies += map(orjson.loads, payload.split(b"\n"))
            else:
                assert opcode == frames.BINARY
                replies += [protobuf.decode("Reply", part) for part in protobuf.split(payload, 100)]
        return replies


@pytest.fixture(params=[JSON, PROTOBUF], ids=["json", "protobuf"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param)


def data(client: Client, value: Any) -> Any:
    return value if client.protocol is JSON else orjson.dumps(value)


@pytest.mark.parametrize("protocol", [JSON, PROTOBUF])
def test_a_client_connects_and_gets_its_settings(protocol: Centrifugo) -> None:
    client = Client(protocol, connected=False)
    assert client.say(id=1, connect={"token": "t", "name": "js"}) == Connect("t", 1)
    result = {"client": "n.1", "version": "0.1.0", "expires": True, "ttl": 60, "ping": 25, "pong": True}
    [reply] = client.sent(events.Authenticated())
    assert reply.pop("id") == 1 and reply["connect"].keys() == result.keys()
    assert {**reply["connect"], "version": "0.1.0"} == result


def test_a_connect_reply_without_pings_has_no_ping_fields() -> None:
    client = Client(connected=False)
    client.conversation.frame_pings = True
    client.say(id=1, connect={})
    assert "ping" not in client.sent(events.Authenticated())[0]["connect"]
    assert client.conversation.ping() == frames.build(frames.PING, b"")


def test_several_commands_come_in_one_frame(client: Client) -> None:
    subscribe = {"id": 2, "subscribe": {"channel": "a"}}, {"id": 3, "subscribe": {"channel": "b"}}
    messages = client.split(*subscribe)
    assert [cast(Subscribe, client.conversation.decode(each)).topics for each in messages] == [("a",), ("b",)]


def test_the_number_of_commands_in_a_frame_has_a_bound(client: Client) -> None:
    command = {"id": 2, "unsubscribe": {"channel": "a"}}
    assert len(client.split(*[command] * conversation.MAX_COMMANDS)) == conversation.MAX_COMMANDS
    with pytest.raises(ProtocolViolation, match="commands in one frame"):
        client.split(*[command] * (conversation.MAX_COMMANDS + 1))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ({"subscribe": {"channel": "a"}}, Subscribe(("a",), 2, None, {}, (), once=True)),
        (
            {"subscribe": {"channel": "a", "token": "t", "recover": True, "epoch": "e", "offset": 3, "flag": 2}},
            Subscribe(("a",), 2, None, {"a": Position("e", 3)}, ("t",), once=True, whole=True),
        ),
        (
            {"subscribe": {"channel": "a", "recover": True}},
            Subscribe(("a",), 2, None, {"a": Position(ANY_EPOCH, 0)}, (), once=True),
        ),
        (
            {"subscribe": {"channel": "a", "tf": {"op": "not", "nodes": [{"key": "k", "cmp": "in", "vals": ["b"]}]}}},
            Subscribe(("a",), 2, once=True, options=SubscriptionOptions(NOT_B)),
        ),
        ({"subscribe": {"channel": "a", "delta": "other"}}, Subscribe(("a",), 2, once=True)),
        ({"unsubscribe": {"channel": "a"}}, Unsubscribe(("a",), 2)),
        ({"presence": {"channel": "a"}}, Request("a", "presence", {"clients": True}, 2)),
        ({"refresh": {"token": "t"}}, Auth("t", 2, same_user=True)),
        ({"sub_refresh": {"channel": "a", "token": "t"}}, RenewGrant("a", "t", 2)),
    ],
)
def test_commands(client: Client, command: dict[str, Any], expected: object) -> None:
    assert client.say(id=2, **command) == expected


def test_commands_with_data(client: Client) -> None:
    value = {"text": "é", "n": [1, None]}
    publish = client.say(id=2, publish={"channel": "a", "data": data(client, value)})
    assert publish.publication.topic == "a" and orjson.dumps(publish.publication.data) == orjson.dumps(value)
    rpc = client.say(id=3, rpc={"method": "sum", "data": data(client, [1, 2])})
    assert isinstance(rpc, BackendCommand) and (rpc.topic, rpc.action, rpc.request_id) == ("rpc", "sum", 3)
    assert orjson.dumps(rpc.data) == b"[1,2]"
    assert client.say(send={"data": data(client, 1)}).request_id == 0


@pytest.mark.parametrize(
    ("about", "parameters"),
    [
        ({}, {"limit": 1, "reverse": False, "position_only": True}),
        ({"limit": 5}, {"limit": 5, "reverse": False, "position_only": False, "since": 0}),
        ({"limit": -1}, {"limit": 1000, "reverse": False, "position_only": False}),
        ({"limit": 5, "reverse": True}, {"limit": 5, "reverse": True, "position_only": False}),
        (
            {"limit": 5, "since": {"offset": 7, "epoch": "e"}, "reverse": True},
            {"limit": 5, "reverse": True, "position_only": False, "before": 7, "epoch": "e"},
        ),
    ],
)
def test_history(client: Client, about: dict[str, Any], parameters: dict[str, Any]) -> None:
    assert client.say(id=2, history={"channel": "a", **about}) == Request("a", "history", parameters, 2)


@pytest.mark.parametrize(
    "command",
    [
        {"id": 2, "connect": {}},
        {"subscribe": {"channel": "a"}},  # no id
        {"id": 2, "send": {}},
        {"id": 2, "subscribe": {"channel": ""}},
        {"id": 2},
        {"id": 2, "presence": {"channel": "a"}, "history": {"channel": "a"}},
    ],
)
def test_what_ends_the_connection(client: Client, command: dict[str, Any]) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        client.say(**command)
    assert caught.value.reason is CloseReason.BAD_USE


def test_malformed_frames_end_the_connection() -> None:
    for text in (b"", b"[]", b"{", b'{"id":2,"rpc":{}}\n\n{}', b'{"id":true,"rpc":{}}', b'{"id":2,"rpc":[]}'):
        client = Client()
        with pytest.raises(ProtocolViolation):
            list(map(client.conversation.decode, client.conversation.split(frames.TEXT, text)))
    with pytest.raises(ProtocolViolation):
        Client().conversation.split(frames.BINARY, b"{}")
    with pytest.raises(ProtocolViolation):
        Client(PROTOBUF).conversation.split(frames.BINARY, b"\x05")


def test_connect_comes_first() -> None:
    with pytest.raises(ProtocolViolation):
        Client(connected=False).say(id=1, unsubscribe={"channel": "a"})


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ({"subscribe": {"channel": "no topic"}}, ErrorReason.DATA_REFUSED),
        ({"subscribe": {"channel": "a", "type": 1}}, ErrorReason.NOT_IMPLEMENTED),
        ({"subscribe": {"channel": "a", "tf": {"op": "eq"}}}, ErrorReason.DATA_REFUSED),
        ({"subscribe": {"channel": "a", "delta": "fossil", "tf": {"key": "a", "cmp": "ex"}}}, ErrorReason.DATA_REFUSED),
        ({"publish": {"channel": "a"}}, ErrorReason.DATA_REFUSED),
        ({"sub_refresh": {"channel": "a", "type": 1}}, ErrorReason.NOT_IMPLEMENTED),
        ({"ping": {}}, ErrorReason.NOT_IMPLEMENTED),
    ],
)
def test_what_is_refused_is_answered(client: Client, command: dict[str, Any], reason: ErrorReason) -> None:
    with pytest.raises(ProtocolError) as caught:
        client.say(id=2, **command)
    assert caught.value.reason is reason
    [reply] = client.sent(events.Failed(caught.value))
    assert reply["id"] == 2 and reply["error"]["code"] in (107, 108)


def test_an_error_without_an_id_answers_the_last_command(client: Client) -> None:
    client.say(id=2, unsubscribe={"channel": "a"})
    [reply] = client.sent(events.Failed(ProtocolError(ErrorReason.INTERNAL, "failed")))
    assert reply == {"id": 2, "error": {"code": 100, "message": "failed", "temporary": True}}
    assert client.sent(events.Failed(ProtocolError(ErrorReason.INTERNAL, "failed"))) == []


def test_nothing_answers_what_has_no_id(client: Client) -> None:
    command = client.say(send={"data": data(client, 1)})
    assert client.sent(events.CommandDone(command, 1)) == []
    assert client.sent(events.Failed(ProtocolError(ErrorReason.NOT_IMPLEMENTED, "no", 0))) == []


def test_a_token_that_is_not_valid_disconnects_and_an_expired_one_is_answered() -> None:
    for detail, reason in (("token_invalid", CloseReason.BAD_TOKEN), ("token_expired", None)):
        client = Client(connected=False)
        client.say(id=1, connect={"token": "t"})
        error = ProtocolError(ErrorReason.TOKEN, "no", 1, detail)
        assert client.conversation.close_reason(error) is reason
        assert client.sent(events.Failed(error))[0]["error"]["code"] == (109 if reason is None else 103)
        with pytest.raises(ProtocolViolation):
            client.say(id=2, unsubscribe={"channel": "a"})


def test_pings_come_at_regular_times_whatever_the_client_sends(client: Client) -> None:
    times = [at for at in range(100) if client.conversation.wants_ping(1000 + at, silent=False)]
    first, *others = times
    assert 12.5 <= first <= 26
    assert others == [first + 25 * count for count in range(1, len(times))] and times[-1] >= 75
    client.conversation.frame_pings = True
    assert not client.conversation.wants_ping(2000, silent=False)
    assert client.conversation.wants_ping(2000, silent=True)


def test_clients_that_connect_together_are_not_pinged_together() -> None:
    clients = [JSON.conversation(f"n.1.{number}", Client().session) for number in range(100)]
    for each in clients:
        each.encode(events.Welcome("n.1", "n", "v", 25_000, {}), 0)
    early = [each for each in clients if not each.wants_ping(0, silent=False) and each.wants_ping(19, silent=False)]
    assert 30 < len(early) < 70


def test_pongs_answer_pings(client: Client) -> None:
    assert client.read(client.conversation.ping()) == [{}]
    assert client.say() is None
    with pytest.raises(ProtocolViolation, match="pong"):
        client.say()


def delivered(topic: str, value: Any, offset: int, **extras: Any) -> Delivered:
    return Delivered(message.pack(topic, value, extras, 0), Position("e", offset, 5) if offset else None)


def test_messages_are_pushed(client: Client) -> None:
    event = delivered("a", {"x": [1]}, 7, action="add")
    pub = {"data": data(client, {"x": [1]}), "offset": 7, "tags": {"action": "add"}}
    assert client.read(event.frame(client.protocol)) == [{"push": {"channel": "a", "pub": pub}}]
    event = delivered("a", 1, 0)
    assert client.read(event.frame(client.protocol)) == [{"push": {"channel": "a", "pub": {"data": data(client, 1)}}}]
    assert events.PresenceChanged("a", {}, 0).frame(client.protocol) == b""


def subscribed(client: Client, recover: bool = True, recovered: bool = True, topic: str = "a") -> Any:
    about = {"channel": topic, "recover": True, "epoch": "e", "offset": 3} if recover else {"channel": topic}
    client.say(id=2, subscribe=about)
    missed = [delivered(topic, "x", 4), delivered(topic, "y", 5)] if recover and recovered else []
    assert client.conversation.encode_missed(missed) == b""
    known = {topic: recovered} if recover else {}
    [reply] = client.sent(events.Subscribed((topic,), 2, {topic: Position("e", 5, 1)}, known))
    assert reply["id"] == 2
    return reply["subscribe"]


def test_missed_messages_are_in_the_reply(client: Client) -> None:
    place = {"recoverable": True, "positioned": True, "epoch": "e"}
    assert subscribed(client, recover=False) == {**place, "offset": 5}
    assert subscribed(client, recovered=False) == {**place, "offset": 5, "was_recovering": True}
    publications = [{"data": data(client, value), "offset": offset} for value, offset in (("x", 4), ("y", 5))]
    assert subscribed(client) == {
        **place, "offset": 3, "was_recovering": True, "recovered": True, "publications": publications
    }  # fmt: skip


def test_a_client_with_deltas_reads_all_data_as_bytes(client: Client) -> None:
    about = {"channel": "a", "recover": True, "epoch": "e", "offset": 3, "delta": "fossil"}
    command = client.say(id=2, subscribe=about)
    assert command.options == SubscriptionOptions(delta=True)
    client.conversation.encode_missed([delivered("a", {"x": "é"}, 4), delivered("b", 1, 5)])
    [reply] = client.sent(events.Subscribed(("a",), 2, {"a": Position("e", 4, 1)}, {"a": True}))
    written = orjson.dumps({"x": "é"})
    raw = written.decode() if client.protocol is JSON else written
    assert reply["subscribe"]["delta"] is True
    assert reply["subscribe"]["publications"] == [{"data": raw, "offset": 4}]
    client.say(id=3, unsubscribe={"channel": "a"})
    client.sent(events.Unsubscribed(("a",), 3))
    assert "delta" not in subscribed(client, recover=False)


def test_what_other_clients_receive_after_a_refused_subscription_with_deltas(client: Client) -> None:
    client.say(id=2, subscribe={"channel": "a", "delta": "fossil"})
    client.sent(events.Failed(ProtocolError(ErrorReason.NOT_ALLOWED, "no", 2)))
    client.conversation.encode_missed([delivered("a", 1, 4)])
    pushes = client.sent(events.Subscribed(("a",), None, by_server=True))
    assert pushes[1] == {"push": {"channel": "a", "pub": {"data": data(client, 1), "offset": 4}}}


def test_too_many_missed_messages_are_not_recovered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_REPLY_BYTES", 6)
    found = subscribed(client)
    assert "recovered" not in found and found["offset"] == 5 and "publications" not in found
    monkeypatch.undo()
    assert len(subscribed(client)["publications"]) == 2


@pytest.mark.parametrize("ends", ["error", "unsubscribed"])
def test_an_ended_subscription_leaves_no_messages_for_the_next(client: Client, ends: str) -> None:
    client.say(id=2, subscribe={"channel": "a", "recover": True, "epoch": "e", "offset": 3})
    client.conversation.encode_missed([delivered("a", "x", 4)])
    assert client.conversation.held_bytes > 0
    if ends == "error":
        client.sent(events.Failed(ProtocolError(ErrorReason.INTERNAL, "failed", 2)))
    else:
        client.say(id=3, unsubscribe={"channel": "a"})
        assert client.sent(events.Unsubscribed(("a",), 3)) == [{"id": 3, "unsubscribe": {}}]
        client.sent(events.Failed(ProtocolError(ErrorReason.NO_VALID_TOPIC, "unsubscribed", 2)))
    assert client.conversation.held_bytes == 0
    assert len(subscribed(client)["publications"]) == 2


def test_a_snapshot_is_in_the_reply(client: Client) -> None:
    for about, recovery in (({}, {}), ({"recover": True}, {"was_recovering": True, "recovered": True})):
        client.say(id=2, subscribe={"channel": "a", **about})
        client.conversation.encode_missed([Delivered(message.pack("a", 1, {}, 0), initial=True)])
        assert client.sent(events.Subscribed(("a",), 2)) == [
            {"id": 2, "subscribe": {**recovery, "publications": [{"data": data(client, 1)}]}}
        ]


def test_topics_of_the_token_are_in_the_reply_to_connect() -> None:
    client = Client(connected=False)
    connect = client.say(id=1, connect={"subs": {"a": {"recover": True, "epoch": "e", "offset": 4}, "b": {}}})
    assert connect == Connect(None, 1, {"a": Position("e", 4)})
    client.conversation.encode_missed([delivered("a", 1, 5)])
    [reply] = client.sent(events.Subscribed(("a", "b"), 1, {"a": Position("e", 5)}, {"a": True}))
    assert reply["connect"]["subs"] == {
        "a": {"recoverable": True, "positioned": True, "epoch": "e", "offset": 4, "was_recovering": True,
              "recovered": True, "publications": [{"data": 1, "offset": 5}]},
        "b": {},
    }  # fmt: skip


def test_the_time_that_is_left_of_a_subscription_token(client: Client) -> None:
    client.session._grants = {"a": Grant(("a",), None, NOW_MS / 1000 + 35)}
    client.say(id=2, sub_refresh={"channel": "a", "token": "t"})
    ttl = {"expires": True, "ttl": 30}
    assert client.sent(events.GrantRenewed("a", 2)) == [{"id": 2, "sub_refresh": ttl}]
    assert ttl.items() <= subscribed(client).items()


def test_other_replies(client: Client) -> None:
    client.say(id=2, publish={"channel": "a", "data": data(client, 1)})
    assert client.sent(events.Published("a", None, 2)) == [{"id": 2, "publish": {}}]
    rpc = client.say(id=3, rpc={"method": "m", "data": data(client, 1)})
    assert client.sent(events.CommandDone(rpc, {"y": 1})) == [{"id": 3, "rpc": {"data": data(client, {"y": 1})}}]
    client.say(id=4, refresh={"token": "t"})
    [reply] = client.sent(events.Authenticated())
    assert reply["id"] == 4 and reply["refresh"]["ttl"] == 60 and "ping" not in reply["refresh"]


def test_the_pages_of_a_history(client: Client) -> None:
    page = events.History("e", 5, 1, [delivered("a", "x", 4), delivered("a", "y", 5)])
    request = client.say(id=2, history={"channel": "a", "limit": 2})
    publications = [{"data": data(client, value), "offset": offset} for value, offset in (("x", 4), ("y", 5))]
    assert client.sent(events.Answer(request, page)) == [
        {"id": 2, "history": {"epoch": "e", "offset": 5, "publications": publications}}
    ]
    request = client.say(id=2, history={"channel": "a"})
    assert client.sent(events.Answer(request, page)) == [{"id": 2, "history": {"epoch": "e", "offset": 5}}]
    request = client.say(id=2, history={"channel": "a", "limit": 2, "since": {"offset": 1, "epoch": "old"}})
    assert client.sent(events.Answer(request, page))[0]["error"]["code"] == 112


def test_presence_lists_clients(client: Client) -> None:
    clients = [{"clientId": "n.1", "user": "ann", "info": {"x": 1}}, {"clientId": "n.2", "user": None}]
    request = client.say(id=2, presence={"channel": "a"})
    ann = {"user": "ann", "client": "n.1", "conn_info": data(client, {"x": 1})}
    assert client.sent(events.Answer(request, {"count": 2, "clients": clients})) == [
        {"id": 2, "presence": {"presence": {"n.1": ann, "n.2": {"client": "n.2"}}}}
    ]
    request = client.say(id=2, presence_stats={"channel": "a"})
    assert client.sent(events.Answer(request, {"count": 2, "clientCount": 2, "clients": clients})) == [
        {"id": 2, "presence_stats": {"num_clients": 2, "num_users": 2}}
    ]


def test_many_clients_are_counted_but_not_listed(client: Client) -> None:
    many = {"count": 1500, "clientCount": 2000}
    request = client.say(id=2, presence_stats={"channel": "a"})
    counts = {"num_clients": 2000, "num_users": 1500}
    assert client.sent(events.Answer(request, many)) == [{"id": 2, "presence_stats": counts}]
    request = client.say(id=2, presence_stats={"channel": "a"})
    nothing = {"num_clients": 0, "num_users": 0} if client.protocol is JSON else {}
    assert client.sent(events.Answer(request, {"count": 0, "clientCount": 0, "clients": []})) == [
        {"id": 2, "presence_stats": nothing}
    ]
    [refused] = client.sent(events.Answer(client.say(id=3, presence={"channel": "a"}), many))
    assert refused["error"]["code"] == 106


def test_a_publication_names_its_sender(client: Client) -> None:
    client.session.identity = Identity("ann", info=b'{"x":1}')
    published = client.say(id=2, publish={"channel": "a", "data": data(client, 1)}).publication
    body = message.pack("a", published.data, {**published.extras, "action": "new"}, 0)
    info = {"user": "ann", "client": "n.1", "conn_info": data(client, {"x": 1})}
    pub = {"data": data(client, 1), "info": info, "tags": {"action": "new"}}
    assert client.read(Delivered(body).frame(client.protocol)) == [{"push": {"channel": "a", "pub": pub}}]
    other = Client(client.protocol)
    other.session.identity = Identity()
    published = other.say(id=2, publish={"channel": "a", "data": data(client, 1)}).publication
    body = message.pack("a", published.data, published.extras, 0)
    [push] = other.read(Delivered(body).frame(client.protocol))
    assert push["push"]["pub"]["info"] == {"client": "n.1"}


def test_clients_that_join_and_leave_are_pushed(client: Client) -> None:
    changes = ClientChanges([Member("n.1", "ann", b'{"x":1}')], [Member("n.2", None)])
    ann = {"user": "ann", "client": "n.1", "conn_info": data(client, {"x": 1})}
    assert client.read(events.ClientsChanged("a", changes, 0).frame(client.protocol)) == [
        {"push": {"channel": "a", "leave": {"info": {"client": "n.2"}}}},
        {"push": {"channel": "a", "join": {"info": ann}}},
    ]


def test_a_subscription_by_the_back_end_is_pushed(client: Client) -> None:
    client.conversation.encode_missed([Delivered(message.pack("a", 1, {}, 0), initial=True)])
    assert client.sent(events.Subscribed(("a",), None, by_server=True)) == [
        {"push": {"channel": "a", "subscribe": {}}},
        {"push": {"channel": "a", "pub": {"data": data(client, 1)}}},
    ]
    [push] = client.sent(events.Subscribed(("a",), None, {"a": Position("e", 5)}, by_server=True))
    assert push["push"]["subscribe"] == {"recoverable": True, "positioned": True, "epoch": "e", "offset": 5}


def test_ended_subscriptions_have_codes(client: Client) -> None:
    for why, code in ((UnsubscribeReason.SERVER, 2000), (UnsubscribeReason.GAP, 2500)):
        ended = {"code": code, "reason": "gone"}
        assert client.sent(events.SubscriptionsEnded(["a", "b"], "gone", why)) == [
            {"push": {"channel": topic, "unsubscribe": ended}} for topic in "ab"
        ]


def test_what_the_protocol_does_not_have_is_not_sent(client: Client) -> None:
    for event in (events.Gap(["a"]), events.Degraded(), events.Restored(), events.TokenExpiring(1)):
        assert client.sent(event) == []


def test_the_commands_without_a_reply_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    monkeypatch.setattr(conversation, "MAX_ASKED", 2)
    client.say(id=2, unsubscribe={"channel": "a"})
    with pytest.raises(ProtocolViolation):
        client.say(id=2, unsubscribe={"channel": "a"})  # the same id
    client.say(id=3, unsubscribe={"channel": "a"})
    with pytest.raises(ProtocolViolation):
        client.say(id=4, unsubscribe={"channel": "a"})
    assert MappingProxyType(client.conversation._asked).keys() == {2, 3}

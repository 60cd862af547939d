"""One client that speaks Centrifugo's protocol: what it has asked, and the replies.  (pure)"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from zlib import crc32

import orjson

from gateway import __version__
from gateway.core import events, frames, message
from gateway.core.commands import Command, Connect, Publish, Request, Subscribe
from gateway.core.errors import CloseReason, ErrorReason, ProtocolError, ProtocolViolation
from gateway.core.events import Broadcast, Delivered, DeltaDelivered, Event
from gateway.core.message import SENDER
from gateway.core.position import Position
from gateway.core.session import Session
from gateway.protocols.centrifugo import codes, decoder
from gateway.protocols.centrifugo.codec import Codec, Fields
from gateway.protocols.centrifugo.publications import Publications, client_info, publication
from gateway.protocols.stateless import PING

MAX_COMMANDS: Final = 1000  # in one frame
MAX_ASKED: Final = 1000  # commands without a reply yet; the node refuses far fewer
# Recovered publications that wait for the replies to one client, beside a first one of any size. A client that misses
# more has to reload.
MAX_REPLY_BYTES: Final = 1 << 20


class _Asked(NamedTuple):
    """A command without a reply yet."""

    kind: str
    topics: Collection[str] = ()  # of a subscription
    recover: Mapping[str, Position] = MappingProxyType({})


_NOTHING: Final = _Asked("")


class CentrifugoConversation:
    """The conversation with one client. `publications` encodes what a reply about a subscription contains."""

    __slots__ = (
        "_asked", "_client_id", "_codec", "_deltas", "_last_id", "_missed", "_next_ping", "_ping_seconds",
        "_pongs_due", "_publications", "_refused", "_session", "_stream", "_too_long", "frame_pings", "held_bytes",
        "is_connected",
    )  # fmt: skip

    knows_gaps: Final = False

    def __init__(self, codec: Codec, publications: Publications, client_id: str, session: Session) -> None:
        self.frame_pings = False  # the client is pinged by WebSocket pings
        self._codec = codec
        self._publications = publications
        self._client_id = client_id
        self._session = session
        self.is_connected = False  # it has sent `connect`
        self._refused = False  # its `connect` was answered with an error
        self._pongs_due = 0
        self._ping_seconds = 0
        self._next_ping: float | None = None  # loop time
        self._stream = ""  # the name of its stream over HTTP, which its requests repeat
        self._last_id = 0
        self._asked: dict[int, _Asked] = {}  # by id
        self._deltas: set[str] = set()  # topics for which it has asked for deltas
        self._missed: dict[str, list[bytes]] = {}  # publications for the reply about a topic
        self.held_bytes = 0  # of `_missed`
        self._too_long: set[str] = set()  # topics whose publications exceed a reply

    # ---- from the client

    def split(self, opcode: int, payload: bytes) -> Sequence[bytes]:
        """The commands in one frame."""
        try:
            if opcode != self._codec.opcode:
                raise ValueError
            commands = self._codec.split(payload, MAX_COMMANDS)
        except ValueError:
            raise ProtocolViolation(CloseReason.BAD_USE, "bad request: malformed frame") from None
        if len(commands) > MAX_COMMANDS:
            raise ProtocolViolation(CloseReason.BAD_USE, f"more than {MAX_COMMANDS} commands in one frame")
        return commands

    def decode(self, message: bytes) -> Command | None:
        """One command; None: a pong."""
        try:
            fields = self._codec.read(message)
        except ValueError:
            raise ProtocolViolation(CloseReason.BAD_USE, "bad request: malformed command") from None
        if not fields:
            self._take_pong()
            return None
        if ("connect" in fields) is self.is_connected or self._refused:
            raise ProtocolViolation(CloseReason.BAD_USE, "bad request: connect comes first, and once")
        self.is_connected = True
        kind, number = decoder.head(fields)
        if len(self._asked) >= MAX_ASKED or number in self._asked:
            raise ProtocolViolation(
                CloseReason.BAD_USE, "bad request: too many commands without a reply, or one id twice"
            )
        self._last_id = number
        if number:
            self._asked[number] = _Asked(kind)
        command = decoder.body(self._codec, fields)
        if isinstance(command, Connect):
            self._asked[number] = _Asked(kind, (), command.recover)
        elif isinstance(command, Subscribe):
            self._asked[number] = _Asked(kind, command.topics, command.recover)
            if command.options.delta:
                self._deltas.update(command.topics)
            else:
                self._deltas.difference_update(command.topics)
        elif isinstance(command, Publish):
            publication = command.publication._replace(extras={SENDER: self._sender()})
            return replace(command, publication=publication)
        return command

    def _sender(self) -> dict[str, Any]:
        """The client as messages that it publishes name it."""
        identity = self._session.identity
        about = {"clientId": self._client_id, "user": identity.user}
        return about if identity.info is None else {**about, "info": orjson.Fragment(identity.info)}

    def _take_pong(self) -> None:
        if not self._pongs_due:
            raise ProtocolViolation(CloseReason.BAD_USE, "bad request: a pong without a ping")
        self._pongs_due -= 1

    def wants_ping(self, now: float, *, silent: bool) -> bool:
        """At regular times whatever it sends, because the client reconnects if it hears nothing for longer.

        The first ping comes after half of the interval to all of it, so that clients that connect together are not
        pinged together.
        """
        if self.frame_pings:
            return silent
        if self._next_ping is None:
            self._next_ping = now + self._ping_seconds * (1 + crc32(self._client_id.encode()) % 1000 / 1000) / 2
        due = now >= self._next_ping
        if due:
            self._next_ping = now + self._ping_seconds
        return due

    def ping(self) -> bytes:
        """An empty reply, which the client answers with an empty command."""
        if self.frame_pings:
            return PING
        self._pongs_due += 1
        return self._frame({})

    def close_reason(self, error: ProtocolError) -> CloseReason | None:
        """A client whose token is not valid is disconnected, and does not come back."""
        kind = self._asked.get(self._id_of(error), _NOTHING).kind
        if self._codec.unidirectional:  # it would not understand an error
            return CloseReason.BAD_TOKEN if error.reason is ErrorReason.TOKEN else CloseReason.BAD_USE
        invalid = error.reason is ErrorReason.TOKEN and error.detail != "token_expired"
        return CloseReason.BAD_TOKEN if invalid and kind in ("connect", "refresh") else None

    # ---- to the client

    def encode_missed(self, messages: Sequence[Broadcast]) -> bytes:
        """Nothing: the reply to the subscription contains the messages."""
        for event in messages:
            assert isinstance(event, Delivered)
            topic = message.unpack(event.body)[1].decode()
            if topic in self._too_long:
                continue
            form = DeltaDelivered(event, None) if topic in self._deltas else event
            data = form.frame(self._publications)
            if self.held_bytes and self.held_bytes + len(data) > MAX_REPLY_BYTES:
                self._take_missed(topic)
                self._too_long.add(topic)
            else:
                self._missed.setdefault(topic, []).append(data)
                self.held_bytes += len(data)
        return b""

    def _take_missed(self, topic: str) -> list[bytes]:
        """The publications for the reply about a topic, which are then forgotten."""
        self._too_long.discard(topic)
        missed = self._missed.pop(topic, [])
        self.held_bytes -= sum(map(len, missed))
        return missed

    def encode(self, event: Event, now_ms: int) -> bytes:
        """Frames with an event; none for events that the protocol does not have."""
        match event:
            case events.Welcome():
                self._ping_seconds = max(1, event.ping_ms // 1000)
            case events.StreamOpened(name):
                self._stream = name
            case events.StreamClosed(code, reason):
                return self._frame({"push": {"disconnect": {"code": code, "reason": reason or "closed"}}})
            case events.Subscribed():
                return self._subscribed(event, now_ms / 1000)
            case events.Authenticated():
                return self._logged_in({}, now_ms / 1000)
            case events.Unsubscribed(topics, request_id):
                self._deltas.difference_update(topics)
                for topic in topics:
                    self._take_missed(topic)
                return self._reply(request_id, {})
            case events.Published(_, _, request_id):
                return self._reply(request_id, {})
            case events.GrantRenewed(topic, request_id):
                return self._reply(request_id, self._grant_time(topic, now_ms / 1000))
            case events.CommandDone(command, content):
                return self._reply(command.request_id, {"data": orjson.dumps(content)})
            case events.Answer():
                return self._answer(event)
            case events.Failed(error):
                return self._failed(error)
            case events.SubscriptionsEnded(topics, reason, why):
                self._deltas.difference_update(topics)
                gone = {"code": codes.UNSUBSCRIBE_CODES[why], "reason": reason}
                return b"".join([self._frame({"push": {"channel": topic, "unsubscribe": gone}}) for topic in topics])
        return b""

    def _frame(self, reply: Fields) -> bytes:
        return frames.build(self._codec.opcode, self._codec.join([self._codec.write("Reply", reply)]))

    def _reply(self, request_id: Any, result: Fields) -> bytes:
        kind = self._asked.pop(request_id, _NOTHING).kind
        return self._frame({"id": request_id, kind: result}) if kind else b""

    def _failed(self, error: ProtocolError) -> bytes:
        number = self._id_of(error)
        kind, topics, _ = self._asked.pop(number, _NOTHING)
        if not kind:
            return b""
        for topic in topics:
            self._take_missed(topic)
        if error.reason is not ErrorReason.ALREADY_SUBSCRIBED:
            self._deltas.difference_update(topics)
        self._refused = self._refused or kind == "connect"
        code = codes.error_code(error)
        about: dict[str, Any] = {"code": int(code), "message": error.message}
        if code in codes.TEMPORARY:
            about["temporary"] = True
        return self._frame({"id": number, "error": about})

    def _id_of(self, error: ProtocolError) -> int:
        """The command that an error is about: without an id, the last one, since the others wait for it."""
        return error.request_id if isinstance(error.request_id, int) else self._last_id

    def _logged_in(self, subscriptions: Fields, now: float) -> bytes:
        """The reply to connect or refresh. Only one of them waits at a time."""
        number = next((n for n, asked in self._asked.items() if asked.kind in ("connect", "refresh")), 0)
        result: dict[str, Any] = {"client": self._client_id, "version": __version__}
        left = self._session.seconds_left(now)
        if left is not None:
            result |= {"expires": True, "ttl": left}
        if number and self._asked[number].kind == "connect":
            if subscriptions:
                result["subs"] = subscriptions
            if self._stream and not self._codec.unidirectional:
                result |= {"session": self._stream, "node": self._client_id.rpartition(".")[0]}
            if not self.frame_pings:
                result |= {"ping": self._ping_seconds, **_nonzero(pong=not self._codec.unidirectional)}
        return self._reply(number, result)

    def _subscribed(self, event: events.Subscribed, now: float) -> bytes:
        if event.by_server:
            return b"".join([self._entered(topic, event) for topic in event.topics])
        kind, _, recover = self._asked.get(event.request_id, _NOTHING)  # type: ignore[arg-type]
        results = {topic: self._subscription(topic, event, recover.get(topic), now) for topic in event.topics}
        if kind == "connect":
            return self._logged_in(results, now)
        return b"".join([self._reply(event.request_id, result) for result in results.values()])

    def _entered(self, topic: str, event: events.Subscribed) -> bytes:
        """The push that the back end has subscribed the client, and the messages that the client receives first."""
        position = event.positions.get(topic)
        about: dict[str, Any] = {} if event.data is None else {"data": orjson.dumps(event.data)}
        if position is not None:
            about |= {"recoverable": True, "positioned": True, **_nonzero(epoch=position.epoch, offset=position.offset)}
        pushes: list[Fields] = [
            {"subscribe": about},
            *({"pub": publication} for publication in self._take_missed(topic)),
        ]
        return b"".join([self._frame({"push": {"channel": topic, **push}}) for push in pushes])

    def _subscription(self, topic: str, event: events.Subscribed, asked: Position | None, now: float) -> Fields:
        result = self._grant_time(topic, now)
        position, complete = event.positions.get(topic), topic not in self._too_long
        publications = self._take_missed(topic)
        recovered = complete and (bool(publications) if position is None else event.recovered.get(topic, False))
        if position is not None:
            offset = asked.offset if asked is not None and recovered else position.offset
            result |= {"recoverable": True, "positioned": True, **_nonzero(epoch=position.epoch, offset=offset)}
        if asked is not None:
            result |= {"was_recovering": True, **_nonzero(recovered=recovered)}
        if publications and complete:
            result["publications"] = publications
        if topic in self._deltas:
            result["delta"] = True
        return result

    def _grant_time(self, topic: str, now: float) -> dict[str, Any]:
        left = self._session.grant_seconds_left(topic, now)
        return {} if left is None else {"expires": True, "ttl": left}

    # ---- answers about topics

    def _answer(self, event: events.Answer) -> bytes:
        request, content = event.request, event.content
        if isinstance(content, events.History):
            return self._history(request, content)
        about = content if isinstance(content, dict) else {}
        clients = about.get("clients")
        if self._asked.get(request.request_id, _NOTHING).kind == "presence_stats":  # type: ignore[arg-type]
            users = about.get("count", 0) if clients is None else len({each["user"] for each in clients})
            counts = {"num_clients": about.get("clientCount", 0), "num_users": users}
            return self._reply(request.request_id, counts)  # with zeros: JavaScript compares them
        if clients is None and about.get("count"):
            message_text = "Too many clients for a list: use presence_stats"
            return self._failed(ProtocolError(ErrorReason.TOO_MANY_TOPICS, message_text, request.request_id))
        listed = {each["clientId"]: client_info(each) for each in clients or ()}
        return self._reply(request.request_id, {"presence": listed})

    def _history(self, request: Request, page: events.History) -> bytes:
        epoch = request.parameters.get("epoch")
        if epoch and epoch != page.epoch:
            message_text = "The epoch of this position is over"
            return self._failed(ProtocolError(ErrorReason.UNRECOVERABLE, message_text, request.request_id))
        result: dict[str, Any] = _nonzero(epoch=page.epoch, offset=page.offset)
        if not request.parameters.get("position_only"):
            result["publications"] = [self._publication(each) for each in page.messages]
        return self._reply(request.request_id, result)

    def _publication(self, event: Delivered) -> Fields:
        _, _, extras, data = message.unpack(event.body)
        return publication(self._codec, event, extras, data)


def _nonzero(**fields: Any) -> dict[str, Any]:
    """The fields that are not zero or empty: zero values are left out."""
    return {name: value for name, value in fields.items() if value}

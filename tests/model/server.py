"""A model of the server: its topics with everything ever published, and its side of the wire.

It is strict: a message that a correct client never sends is a `Violation`.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

Frame = dict[str, Any]

KEPT: Final = 4  # messages that a topic with history keeps
MESSAGE_BYTES: Final = 1024
NOW: Final = "2026-01-31T12:00:00.000Z"
BAD: Final = "no topic"  # not a name
SECRET: Final = "secret"  # may not be subscribed to


class Violation(AssertionError):
    """A client has sent a wrong message, or has misinformed its caller."""


@dataclass
class Topic:
    """`log`: the epoch and the offset of each message ever published; the data of a message is its index in it."""

    name: str
    history: bool = False
    snapshot: bool = False
    epoch: int = 0
    offset: int = 0
    log: list[tuple[int, int]] = field(default_factory=list)
    missed_last: bool = False  # the last message was not sent

    @property
    def last(self) -> int:
        """The index of the last message; -1: there is none."""
        return len(self.log) - 1

    def frame(self, index: int, *, initial: bool = False) -> Frame:
        """The DATA message of one that was published."""
        frame: Frame = {"type": "DATA", "topic": self.name, "data": index, "timestamp": NOW}
        if self.history:
            epoch, offset = self.log[index]
            frame |= {"epoch": f"e{epoch}", "offset": offset, "mark": 1000 + index}
        return frame | ({"initialData": True} if initial else {})

    def missed(self, place: Frame) -> list[int] | None:
        """The indexes behind a place that SUBSCRIBE gives; None: they cannot all be sent."""
        kept = [index for index in range(len(self.log)) if self.log[index][0] == self.epoch][-KEPT:]
        if place["epoch"] != f"e{self.epoch}" or place["offset"] > self.offset:
            return None
        if place["offset"] + len(kept) < self.offset:
            return None
        return [index for index in kept if self.log[index][1] > place["offset"]]


@dataclass
class Down:
    """A message on its way to the client. `upto`: by topic, the last message that was published before it was sent."""

    frame: Frame
    upto: dict[str, int] = field(default_factory=dict)


@dataclass
class Connection:
    """One connection: what is on its way in both directions, and the topics that it is sent (from which message on)."""

    number: int
    up: deque[Frame] = field(default_factory=deque)
    down: deque[Down] = field(default_factory=deque)
    joined: dict[str, int] = field(default_factory=dict)
    waiting: list[Frame] = field(default_factory=list)  # SUBSCRIBEs, for Redis
    answered: set[str] = field(default_factory=set)  # the ids of SUBSCRIBEs; some are on their way again
    revoked: set[str] = field(default_factory=set)  # an UNSUBSCRIBE may come in vain
    authenticated: bool = False


class Server:
    """The server. `with_token`: each connection must log in first."""

    def __init__(self, *, with_token: bool) -> None:
        self.topics = {
            topic.name: topic
            for topic in (
                Topic("plain"), Topic("last", snapshot=True), Topic("kept", history=True),
                Topic("both", history=True, snapshot=True),
            )
        }  # fmt: skip
        self.with_token = with_token
        self.connection: Connection | None = None
        self.degraded = False
        self.refuse_subscribes = 0  # so many more, for now
        self.refuse_tokens = 0  # so many more
        self.refused_tokens = 0  # in a row
        self._numbers = 0

    # ---- the connection

    def accept(self) -> Connection:
        """A client comes."""
        if self.connection is not None:
            raise Violation("a second connection while the first is open")
        self._numbers += 1
        self.connection = Connection(self._numbers)
        about = {
            "clientId": f"c{self._numbers}",
            "node": "n",
            "pingMs": 25_000,
            "limits": {"messageBytes": MESSAGE_BYTES},
        }
        self._say({"type": "SYSTEM", "topic": "system", "action": "welcome", "data": about})
        if self.degraded:
            self._say({"type": "SYSTEM", "topic": "system", "action": "degraded", "data": {}})
        return self.connection

    def gone(self) -> None:
        """It is lost; so is what was on its way."""
        self.connection = None

    # ---- what the client sends

    def take(self) -> Frame | None:
        """Handle the next message on its way up, and give it."""
        connection = self.connection
        if connection is None or not connection.up:
            return None
        frame = connection.up.popleft()
        if len(json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode()) > MESSAGE_BYTES:
            raise Violation(f"a message of more than {MESSAGE_BYTES} bytes: {frame['type']}")
        if self.with_token and not connection.authenticated and frame["type"] not in ("AUTH", "ping"):
            raise Violation(f"{frame['type']} before the login")
        match frame["type"]:
            case "ping":
                self._say({"type": "pong"})
            case "AUTH":
                self._authenticate(connection)
            case "SUBSCRIBE":
                self._subscribe(connection, frame)
            case "UNSUBSCRIBE":
                for name in frame["topics"]:
                    if connection.joined.pop(name, None) is None and name not in connection.revoked:
                        raise Violation(f"UNSUBSCRIBE of {name}, which is not subscribed to")
                for other in connection.waiting:  # the same SUBSCRIBE, sent again
                    other["topics"] = [name for name in other["topics"] if name not in frame["topics"]]
            case "PUBLISH":
                self._publish(frame)
            case other:
                raise Violation(f"a message of type {other}")
        return frame

    def _authenticate(self, connection: Connection) -> None:
        if self.refuse_tokens:
            self.refuse_tokens -= 1
            self.refused_tokens += not connection.authenticated
            self._say({"type": "ERROR", "code": 4401, "message": "expired", "reason": "token_expired"})
        else:
            self.refused_tokens = 0
            connection.authenticated = True
            self._say({"type": "ACKNOWLEDGMENT", "operation": "authenticate", "status": "success"})

    def _subscribe(self, connection: Connection, frame: Frame) -> None:
        for other in connection.waiting:
            shared = set(other["topics"]) & set(frame["topics"])
            if shared and other["requestId"] not in (frame["requestId"], *connection.answered):
                raise Violation(f"a second SUBSCRIBE for {shared} while the first waits")
        if self.degraded:
            connection.waiting.append(frame)
            return
        answer = {"requestId": frame["requestId"]}
        if frame["requestId"] in connection.answered:  # the client cannot know which of the answers is the last
            connection.revoked.update(frame["topics"])
        connection.answered.add(frame["requestId"])
        if self.refuse_subscribes:
            self.refuse_subscribes -= 1
            self._unavailable(frame)
            return
        if SECRET in frame["topics"]:
            self._say({"type": "ERROR", "code": 4010, "message": "not you", **answer})
            return
        known = [self.topics[name] for name in frame["topics"] if name in self.topics]
        if not known:
            self._say({"type": "ERROR", "code": 4004, "message": "no valid topic", **answer})
            return
        positions: dict[str, Frame] = {}
        for topic in known:
            recovered = False
            if topic.history:
                positions[topic.name] = {"epoch": f"e{topic.epoch}", "offset": topic.offset, "mark": 1000 + topic.last}
                place = frame.get("recover", {}).get(topic.name)
                if place is not None:
                    if topic.name in connection.joined:
                        raise Violation(f"{topic.name} is recovered twice")
                    missed = topic.missed(place)
                    recovered = positions[topic.name]["recovered"] = missed is not None
                    for index in missed or ():
                        self._say(topic.frame(index))
            if topic.snapshot and topic.log and not recovered:
                self._say(topic.frame(topic.last, initial=True))
            connection.joined[topic.name] = len(topic.log)
        self._say(
            {"type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": [topic.name for topic in known], **answer,
             **({"positions": positions} if positions else {})},
            {topic.name: topic.last for topic in known},
        )  # fmt: skip

    def _publish(self, frame: Frame) -> None:
        if self.degraded:
            self._unavailable(frame)
            return
        self.publish(frame["topic"])
        answer = {"topic": frame["topic"], "requestId": frame["requestId"]}
        self._say({"type": "ACKNOWLEDGMENT", "operation": "publish", **answer})

    def _unavailable(self, frame: Frame) -> None:
        about = {"code": 5030, "message": "later", "temporary": True, "inReplyTo": frame["requestId"]}
        self._say({"type": "ERROR", **about})

    # ---- what happens at the server

    def publish(self, name: str) -> None:
        """A message on a topic."""
        topic = self.topics[name]
        topic.missed_last = False
        topic.offset += 1
        topic.log.append((topic.epoch, topic.offset))
        if self.connection is not None and name in self.connection.joined and not self.degraded:
            self._say(topic.frame(topic.last))
            self.connection.joined[name] = len(topic.log)

    def miss(self, name: str) -> None:
        """A message that the server could not hear, which it says."""
        topic = self.topics[name]
        topic.missed_last = True
        topic.offset += 1
        topic.log.append((topic.epoch, topic.offset))
        if self.connection is not None and name in self.connection.joined:
            self.connection.joined[name] = len(topic.log)
            self._gap([name])

    def forget(self, name: str) -> None:
        """The topic loses its history, if any, and starts a new one; the server's members have missed nothing."""
        topic = self.topics[name]
        topic.epoch += 1
        topic.offset = 0

    def repeat(self, name: str) -> None:
        """A message of a topic with history comes twice, as it may when nodes disagree about what was sent."""
        topic = self.topics[name]
        whole = self.connection is not None and self.connection.joined.get(name) == len(topic.log) > 0
        if topic.history and whole and not topic.missed_last and topic.log[-1][0] == topic.epoch:
            self._say(topic.frame(topic.last))

    def revoke(self, name: str) -> None:
        """The client may not hear a topic any more."""
        if self.connection is not None and self.connection.joined.pop(name, None) is not None:
            self.connection.revoked.add(name)
            about = {"topics": [name], "reason": "by the operator"}
            self._say({"type": "SYSTEM", "topic": "system", "action": "unsubscribed", "data": about})

    def expire(self) -> None:
        """The client's token ends soon."""
        if self.connection is not None and self.connection.authenticated:
            self._say({"type": "SYSTEM", "topic": "system", "action": "token_expiring", "data": {}})

    def lose_redis(self) -> None:
        """Redis goes away."""
        if not self.degraded:
            self.degraded = True
            if self.connection is not None:
                self._say({"type": "SYSTEM", "topic": "system", "action": "degraded", "data": {}})

    def find_redis(self) -> None:
        """Redis comes back: repair histories, report a gap for other topics, answer what waited."""
        if not self.degraded:
            return
        self.degraded = False
        connection = self.connection
        if connection is None:
            return
        missed = []
        for name, start in connection.joined.items():
            topic = self.topics[name]
            if topic.history:
                for index in range(start, len(topic.log)):
                    self._say(topic.frame(index))
            elif start < len(topic.log):
                missed.append(name)
            connection.joined[name] = len(topic.log)
        if missed:
            self._gap(missed)
        waiting, connection.waiting = connection.waiting, []
        for frame in waiting:
            if frame["topics"]:
                self._subscribe(connection, frame)
        self._say({"type": "SYSTEM", "topic": "system", "action": "restored", "data": {}})

    def _gap(self, names: list[str]) -> None:
        frame = {"type": "SYSTEM", "topic": "system", "action": "gap", "data": {"topics": names}}
        self._say(frame, {name: self.topics[name].last for name in names})

    def _say(self, frame: Frame, upto: dict[str, int] | None = None) -> None:
        assert self.connection is not None
        self.connection.down.append(Down({**frame, "timestamp": NOW}, upto or {}))

"""Plays one case against one client, and checks invariants after each step.

What a client must do. Once a subscription is "subscribed", it receives every message that is published after the
server's acknowledgement, once and in order, or a gap in place of what is missing. It receives the last value before it
is "subscribed", and nothing after it was closed. The client sends SUBSCRIBE only for a topic with a pending
subscription and without an unanswered SUBSCRIBE, and UNSUBSCRIBE only for a topic without subscriptions. Its states
follow one another as documented. In the end, with a healthy server, the server sends exactly the topics that the caller
subscribed to, and the client is silent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tests.model.cases import Case, Step
from tests.model.server import BAD, SECRET, Down, Server, Violation

Event = list[Any]

# Which state may follow which.
_NEXT: Final = {
    "": {"connecting", "closed"}, "connecting": {"connected", "waiting", "closed"},
    "connected": {"authenticated", "waiting", "closed"}, "authenticated": {"waiting", "closed"},
    "waiting": {"connecting", "closed"}, "closed": set(),
}  # fmt: skip
_SETTLE_ROUNDS: Final = 400  # of 500 ms, after which a client must have recovered from anything


class Client(Protocol):
    """A client as the player sees it: it carries out steps, and reports what it did, in order.

    Steps: start (with a token?), connect, subscribe (handle, topic; upon which event its callback does what), close
    (handle), say (id, topic), reconnect, token (how the next are given), deliver (text), cut (code), time (ms), end.
    Events: open, send (text), shut; state (name); notified (handle, event, value); did (what a callback does); answered
    (id, how); fault (an uncaught exception).
    """

    @property
    def patience_ms(self) -> int | None:
        """How long it waits for the first acknowledgement of a subscription; None: without end."""
        ...

    def do(self, step: Step) -> list[Event]:
        """Carry out a step, and let everything happen that needs no time to pass."""
        ...


@dataclass
class Handle:
    """A subscription of the caller's, and what it has received."""

    number: int
    topic: str
    since_ms: int
    closed: bool = False  # by the caller
    ended: bool = False  # the client ended it
    entered: bool = False  # it was "subscribed"
    away: bool = False  # its connection was lost since
    last: int = -1  # the index of the last message
    initial: int | None = None  # the index of its last "last value"
    expected: int | None = None  # the index of the next message; None: not known before the first acknowledgement

    @property
    def open(self) -> bool:
        return not self.closed and not self.ended


@dataclass
class Player:
    """Plays a case. `current`: the server's message that the client is being given."""

    client: Client
    server: Server = field(default_factory=lambda: Server(with_token=False))
    handles: dict[int, Handle] = field(default_factory=dict)  # by the case's number: the latest
    all: list[Handle] = field(default_factory=list)
    current: Down | None = None
    state: str = ""
    token: str = "fresh"
    said: dict[int, str] = field(default_factory=dict)
    clock_ms: int = 0
    sent: int = 0  # messages but pings
    asked: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # by connection: the SUBSCRIBEs sent
    answered: set[str | None] = field(default_factory=set)  # of those, by request id
    fatal: bool = False  # the server has ended the client, or the caller

    def play(self, case: Case) -> None:
        """Play it to its end.

        Raises:
            Violation: The client has done what it should not.
        """
        for number, step in enumerate(case):
            try:
                self._step(step)
            except Violation as violation:
                raise Violation(f"{violation} (step {number}: {step})") from None
        try:
            self._settle()
        except Violation as violation:
            raise Violation(f"{violation} (in the end)") from None

    # ---- steps

    def _step(self, step: Step) -> None:
        match step:
            case ["start", with_token]:
                self.server = Server(with_token=with_token)
                self._do(step)
            case ["subscribe", number, topic, *reaction]:
                self._subscribe(number, topic, reaction)
            case ["close", number]:
                self._close(number)
            case ["say", topic]:
                self.said[len(self.said)] = ""
                self._do(["say", len(self.said) - 1, topic])
            case ["connect" | "reconnect"]:
                self._do(step)
            case ["token", how]:
                self._do(step)
                self.token = how
            case ["up", count]:
                for _ in range(count):
                    self._up()
            case ["down", count]:
                for _ in range(count):
                    self._down()
            case ["odd", text]:
                if self.server.connection is not None and self.state in ("connected", "authenticated"):
                    self._do(["deliver", text])
            case ["all"]:
                self._deliver_all()
            case ["cut", code]:
                self._cut(code)
            case ["time", ms]:
                self._pass(ms)
            case ["publish" | "miss" | "forget" | "repeat" | "revoke" as word, topic]:
                getattr(self.server, word)(topic)
            case ["refuse", count]:
                self.server.refuse_subscribes = count
            case ["refuse_tokens", count]:
                self.server.refuse_tokens = count
            case ["outage"]:
                self.server.lose_redis()
            case ["restore"]:
                self.server.find_redis()
            case ["expire"]:
                self.server.expire()

    def _subscribe(self, number: int, topic: str, reaction: list[str]) -> None:
        if self.state == "closed" or (number in self.handles and self.handles[number].open):
            return
        handle = self.handles[number] = Handle(len(self.all), topic, self.clock_ms)
        self.all.append(handle)
        self._do(["subscribe", handle.number, topic, *reaction])

    def _close(self, number: int) -> None:
        handle = self.handles.get(number)
        if handle is not None and handle.open:
            handle.closed = True
            self._do(["close", handle.number])

    def _up(self) -> bool:
        connection = self.server.connection
        if connection is None or not connection.up:
            return False
        self.server.take()
        return True

    def _down(self) -> bool:
        connection = self.server.connection
        if connection is None or not connection.down:
            return False
        self.current = connection.down.popleft()
        self.answered.add(self.current.frame.get("requestId", self.current.frame.get("inReplyTo")))
        self._do(["deliver", json.dumps(self.current.frame)])
        self.current = None
        return True

    def _deliver_all(self) -> None:
        for _ in range(1000):
            if not (self._up() or self._down()):
                return
        raise Violation("it never stops sending")

    def _cut(self, code: int) -> None:
        if self.server.connection is not None:
            self.fatal = 3500 <= code < 4000
            self._lost()
            self._do(["cut", code])

    def _lost(self) -> None:
        self.server.gone()
        for handle in self.all:
            handle.away = handle.away or handle.entered

    def _pass(self, ms: int) -> None:
        self.clock_ms += ms
        self._do(["time", ms])

    # ---- what the client did

    def _do(self, step: Step) -> None:
        for event in self.client.do(step):
            self._event(event)

    def _event(self, event: Event) -> None:
        match event:
            case ["open"]:
                self.server.accept()
            case ["shut"]:
                if self.server.connection is not None:
                    self._lost()
            case ["send", text]:
                self._sent(json.loads(text))
            case ["state", state]:
                if state not in _NEXT[self.state]:
                    raise Violation(f"state {state!r} after {self.state!r}")
                self.state = state
            case ["notified", number, *what]:
                self._notified(self.all[number], *what)
            case ["did", "close", number]:
                self.all[number].closed = True
            case ["did", "unsubscribe", topic]:
                for handle in self.all:
                    handle.closed = handle.closed or handle.topic == topic
            case ["did", "subscribe", number, topic]:
                assert number == len(self.all)
                self.all.append(Handle(number, topic, self.clock_ms))
            case ["answered", number, how]:
                if self.said[number]:
                    raise Violation("a call is answered twice")
                self.said[number] = how
            case ["fault", words]:
                raise Violation(f"a fault: {words}")

    def _sent(self, frame: dict[str, Any]) -> None:
        connection = self.server.connection
        if connection is None:
            raise Violation(f"{frame['type']} is sent without a connection")
        self.sent += frame["type"] != "ping"
        asked = self.asked.setdefault(connection.number, [])
        if frame["type"] == "SUBSCRIBE" and frame not in asked:  # else it is sent again
            for name in frame["topics"]:
                if any(name in other["topics"] for other in asked if other["requestId"] not in self.answered):
                    raise Violation(f"SUBSCRIBE to {name} while another is on its way")
                if not any(handle.topic == name and handle.open for handle in self.all):
                    raise Violation(f"SUBSCRIBE to {name}, which has no subscription")
                here = [handle for handle in self.all if handle.topic == name and handle.open]
                if all(handle.entered and not handle.away for handle in here):
                    raise Violation(f"SUBSCRIBE to {name}, which all are subscribed to")
            asked.append(json.loads(json.dumps(frame)))
        connection.up.append(frame)

    def _notified(self, handle: Handle, event: str, value: Any = None) -> None:
        if event == "ended":
            handle.ended = True
            self._check_end(handle, str(value))
            return
        if not handle.open:
            raise Violation(f"{handle.topic}: {event} {value} after its end")
        match event:
            case "subscribed":
                self._entered(handle)
            case "message":
                self._message(handle, value)
            case "initial":
                if handle.entered and not handle.away:
                    raise Violation(f"{handle.topic}: a last value for a subscription that has been there")
                handle.initial = value
            case "gap":
                self._gap(handle)
            case "recovered":
                upto = self._upto(handle)
                if handle.expected != upto + 1:
                    raise Violation(f"{handle.topic}: recovered, but {handle.expected} to {upto} did not come")
                self._back(handle)

    def _entered(self, handle: Handle) -> None:
        upto = self._upto(handle)
        if handle.entered:
            self._back(handle)
            return
        handle.entered = True
        self._back(handle)
        handle.expected = upto + 1
        self._check_last_value(handle)

    def _back(self, handle: Handle) -> None:
        handle.away = self.server.connection is None  # another's callback may just have given it up

    def _check_last_value(self, handle: Handle) -> None:
        upto = self._upto(handle)
        if self.server.topics[handle.topic].snapshot and upto >= 0 and upto not in (handle.initial, handle.last):
            raise Violation(f"{handle.topic}: the last value, {upto}, did not come; {handle.initial} did")

    def _message(self, handle: Handle, index: int) -> None:
        if index <= handle.last:
            raise Violation(f"{handle.topic}: {index} comes behind {handle.last}")
        if handle.expected is not None and index != handle.expected:
            raise Violation(f"{handle.topic}: {index} comes, but {handle.expected} did not, and there was no gap")
        handle.last = index
        if handle.entered:
            handle.expected = index + 1

    def _gap(self, handle: Handle) -> None:
        frame = self.current.frame if self.current is not None else {}
        if not handle.entered:
            if frame.get("type") == "ACKNOWLEDGMENT":
                raise Violation(f"{handle.topic}: a gap before the subscription")
            return  # it is given what the others are
        if frame.get("type") == "DATA":
            handle.expected = frame["data"]  # another epoch: before its first message
        else:
            handle.expected = self._upto(handle) + 1
            if frame.get("type") == "ACKNOWLEDGMENT":
                self._back(handle)
                self._check_last_value(handle)

    def _upto(self, handle: Handle) -> int:
        if self.current is None or handle.topic not in self.current.upto:
            raise Violation(f"{handle.topic}: notified without a message of the server")
        return self.current.upto[handle.topic]

    def _check_end(self, handle: Handle, why: str) -> None:
        if handle.closed or self.fatal or self.state == "closed" or self.server.refused_tokens >= 3:
            return
        frame = self.current.frame if self.current is not None else {}
        if frame.get("action") == "unsubscribed" and handle.topic in frame["data"]["topics"]:
            return
        if handle.topic in (SECRET, BAD):
            return
        patience = self.client.patience_ms
        if patience is not None and not handle.entered and self.clock_ms - handle.since_ms >= patience:
            return
        raise Violation(f"{handle.topic}: it ends: {why}")

    # ---- the end

    def _settle(self) -> None:
        """Let the server be well: soon all must be as the caller wants it, and then silence; so too after a message."""
        self.server.find_redis()
        self.server.refuse_subscribes = self.server.refuse_tokens = 0
        self._do(["token", "fresh"])
        self._do(["connect"])
        self._calm_down(80)
        if self.state != "closed":
            for name in self.server.topics:
                self.server.publish(name)
            self._calm_down(4)
        if self.state == "closed" and not self.fatal and self.server.refused_tokens < 3:
            raise Violation("it has ended")
        self.fatal = True
        self._do(["end"])
        if any(handle.open for handle in self.all):
            raise Violation("a subscription does not end with the client")
        if unanswered := [number for number, how in self.said.items() if not how]:
            raise Violation(f"calls without an answer: {unanswered}")

    def _calm_down(self, rounds: int) -> None:
        """Go on until all has been as it should be, and silent, for so many half seconds."""
        quiet, since = 0, self.sent
        for _ in range(_SETTLE_ROUNDS):
            self._deliver_all()
            self._pass(500)
            self._deliver_all()
            quiet = quiet + 1 if self._settled() and self.sent == since else 0
            since = self.sent
            if self.state == "closed":
                return
            if quiet >= rounds:
                self._check_settled()
                return
        raise Violation(f"it does not settle: {self.state}, {[h for h in self.all if h.open and not h.entered]}")

    def _settled(self) -> bool:
        return self.state in ("connected", "authenticated") and all(
            handle.entered and not handle.away for handle in self.all if handle.open
        )

    def _check_settled(self) -> None:
        assert self.server.connection is not None
        joined = set(self.server.connection.joined)
        wanted = {handle.topic for handle in self.all if handle.open}
        if joined != wanted:
            raise Violation(f"the server sends {sorted(joined)}, the caller wants {sorted(wanted)}")
        for handle in self.all:
            topic = self.server.topics.get(handle.topic)
            if handle.open and topic is not None and handle.expected != len(topic.log):
                raise Violation(f"{handle.topic}: {handle.expected} to {topic.last} did not come")


def failure(client: Client, case: Case) -> str | None:
    """What the client does wrong in a case; None: nothing."""
    try:
        Player(client).play(case)
    except Violation as violation:
        return str(violation)
    return None

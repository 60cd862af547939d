"""Events as JSON texts. docs/reference/protocol.md is the public description.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from gateway.core import events, message, timestamps, topic_rules
from gateway.core.errors import CloseReason, ProtocolError
from gateway.core.events import Broadcast, Delivered, DeltaDelivered, Event, History, PresenceChanged
from gateway.core.json_text import Json, RequestId
from gateway.protocols.native.codes import ERROR_CODES, TEMPORARY, WITH_REQUEST_ID, CloseCode

# The SYSTEM message before a close: its action, and message and code in its data. For a shutdown it is the code that
# the first front end expects.
_LEAVING = {
    CloseReason.SHUTDOWN: ("shutdown", "Server is restarting", 1001),
    CloseReason.MOVE: ("move", "Another server has more room", int(CloseCode.MOVE)),
}


def broadcast_text(event: Broadcast) -> bytes:
    """The JSON text of an event for many clients."""
    match event:
        case Delivered():
            return data(event)
        case PresenceChanged():
            time = timestamps.iso_time(event.time_ms)
            return orjson.dumps({"type": "PRESENCE", "topic": event.topic, **event.about, "timestamp": time})
    raise TypeError(f"the native protocol has no form for {type(event).__name__}")


def data(event: Delivered) -> bytes:
    """A DATA message. Extras and data are JSON already and stay as they are; for a delta, data is a string."""
    time, topic, extras, value = message.unpack(event.body)
    more = b"" if extras == message.NO_EXTRAS else b"%s," % extras[1:-1]
    end = b',"initialData":true}' if event.initial else b"}"
    if event.position is not None:
        epoch, offset, mark = event.position
        marked = b"" if mark is None else b',"mark":%d' % mark
        end = b',"offset":%d,"epoch":"%s"%s%s' % (offset, epoch.encode(), marked, end)
    if isinstance(event, DeltaDelivered):
        delta = event.delta()
        more += b'"delta":%s,' % (b"false" if delta is None else b"true")
        value = orjson.dumps((value if delta is None else delta).decode())
    if b'"' in topic or b"\\" in topic:  # the only characters of a topic that JSON escapes
        topic = topic.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return b'{"type":"DATA","topic":"%s",%s"data":%s,"timestamp":"%s"%s' % (topic, more, value, time, end)


def history(page: History) -> dict[str, Json]:
    """A part of a topic's history, as REQUEST and the HTTP API answer it."""
    messages = [orjson.Fragment(data(event)) for event in page.messages]
    return {"epoch": page.epoch, "offset": page.offset, "mark": page.mark, "messages": messages}


def text(event: Event, now_ms: int) -> bytes:
    """The JSON text of an event for one client. `now_ms`: the time of the message, in ms since 1970."""
    if isinstance(event, events.Pong):  # the only event without the time of the node, beside those of streams
        return orjson.dumps({"type": "pong", "timestamp": event.timestamp})
    time = timestamps.iso_time(now_ms)
    match event:
        case events.Subscribed():
            return _subscribed(event, time)
        case events.Published():
            return _published(event, time)
        case events.Unsubscribed(names, request_id):
            return orjson.dumps(
                {"type": "ACKNOWLEDGMENT", "operation": "unsubscribe", "topics": list(names), **_echo(request_id),
                 "timestamp": time}
            )  # fmt: skip
        case events.Answer(request, content):
            # Its type is DATA, because a front-end listener for DATA drops RESPONSE.
            content = history(content) if isinstance(content, History) else content
            return orjson.dumps(
                {"type": "DATA", "topic": request.topic, "action": request.action, "data": content,
                 **_echo(request.request_id), "timestamp": time}
            )  # fmt: skip
        case events.CommandDone(command, content):
            fields = {} if content is None else {"data": content}
            return orjson.dumps(
                {"type": "ACKNOWLEDGMENT", "operation": "command", "topic": command.topic, "action": command.action,
                 "status": "success", **fields, **_echo(command.request_id), "timestamp": time}
            )  # fmt: skip
        case events.Authenticated():
            return orjson.dumps(
                {"type": "ACKNOWLEDGMENT", "operation": "authenticate", "status": "success",
                 "message": "User authenticated successfully", "timestamp": time}
            )  # fmt: skip
        case events.LogsAccepted(count):
            return orjson.dumps(
                {"type": "ACKNOWLEDGMENT", "topic": "logs", "message": "Logs received", "count": count,
                 "timestamp": time}
            )  # fmt: skip
        case events.RequestPong(request):  # the only message of the type RESPONSE
            return orjson.dumps(
                {"type": "RESPONSE", "topic": topic_rules.SYSTEM, "action": "pong", "data": {"timestamp": time},
                 **_echo(request.request_id)}
            )  # fmt: skip
        case events.Failed(error):
            return _error(error, time)
        case events.GrantRenewed():
            raise TypeError("the native protocol has no form for GrantRenewed, since it has no such command")
        case events.StreamOpened(name):
            return orjson.dumps({"type": "OPEN", "stream": name})
        case events.StreamClosed(code, reason):
            return orjson.dumps({"type": "CLOSE", "code": code, "reason": reason})
    return _system(*_of_system(event), time)


def _of_system(
    event: events.Welcome | events.SubscriptionsEnded | events.TokenExpiring | events.Gap | events.Degraded
    | events.Restored | events.ServerLeaving,
) -> tuple[str, Mapping[str, Json]]:  # fmt: skip
    """Action and data of a SYSTEM message."""
    match event:
        case events.Welcome(client_id, node, version, ping_ms, limits):
            return "welcome", {
                "clientId": client_id, "node": node, "version": version, "pingMs": ping_ms, "limits": limits
            }  # fmt: skip
        case events.SubscriptionsEnded(names, reason):
            return "unsubscribed", {"topics": names, "reason": reason}
        case events.TokenExpiring(ends_ms):
            message = "Your token expires: send AUTH with a new one"
            return "token_expiring", {"expires": timestamps.iso_time(ends_ms), "message": message}
        case events.Gap(names):
            return "gap", {"topics": sorted(names)}
        case events.Degraded():
            return "degraded", {"message": "Live updates are interrupted; you stay connected"}
        case events.Restored():
            return "restored", {"message": "Live updates flow again"}
        case events.ServerLeaving(reason, reconnect_ms):
            action, message, code = _LEAVING[reason]
            return action, {"message": message, "code": code, "reconnectMs": reconnect_ms}


def _system(action: str, about: Mapping[str, Json], time: str) -> bytes:
    return orjson.dumps(
        {"type": "SYSTEM", "topic": topic_rules.SYSTEM, "action": action, "data": about, "timestamp": time}
    )


def _subscribed(event: events.Subscribed, time: str) -> bytes:
    names = list(event.topics)
    if event.by_server:
        positions = {topic: at._asdict() for topic, at in event.positions.items()}
        more = {"positions": positions} if positions else {}
        if event.data is not None:
            more["data"] = event.data
        return _system("subscribed", {"topics": names, **more}, time)
    # The message does not repeat many names: with thousands of topics that would double the size of the frame.
    listed = ", ".join(names) if len(names) <= 10 else f"{len(names)} topics"
    fields = _echo(event.request_id)
    fields["timestamp"] = time
    if event.positions:
        recovered = event.recovered
        fields["positions"] = {
            topic: {**at._asdict(), **({"recovered": recovered[topic]} if topic in recovered else {})}
            for topic, at in event.positions.items()
        }
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "subscribe", "topics": names, "status": "success",
         "message": f"Successfully subscribed to {listed}", **fields}
    )  # fmt: skip


def _published(event: events.Published, time: str) -> bytes:
    fields: dict[str, Json] = {}
    if event.position is not None:
        epoch, offset, mark = event.position
        fields = {"offset": offset, "epoch": epoch}
        if mark is not None:
            fields["mark"] = mark
    return orjson.dumps(
        {"type": "ACKNOWLEDGMENT", "operation": "publish", "topic": event.topic, **fields, **_echo(event.request_id),
         "timestamp": time}
    )  # fmt: skip


def _error(error: ProtocolError, time: str) -> bytes:
    code = ERROR_CODES[error.reason]
    fields: dict[str, Json] = {
        "type": "ERROR", "code": int(code), "error": error.message, "message": error.message, "timestamp": time
    }  # fmt: skip
    if error.detail is not None:
        fields["reason"] = error.detail
    if code in TEMPORARY:
        fields["temporary"] = True
    if error.request_id is not None:
        # Our own clients match the error to their PUBLISH or REQUEST by `inReplyTo`. The front end ignores it, so it
        # does not resend.
        fields["requestId" if code in WITH_REQUEST_ID else "inReplyTo"] = error.request_id
    return orjson.dumps(fields)


def _echo(request_id: RequestId) -> dict[str, Json]:
    return {} if request_id is None else {"requestId": request_id}

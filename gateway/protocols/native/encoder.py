"""Events as JSON texts.  (pure)"""

from __future__ import annotations

import orjson

from gateway.core import message, protocol
from gateway.core.events import Delivered, Event, History, PresenceChanged
from gateway.core.protocol import Json


def text(event: Event) -> bytes:
    """The JSON text of `event`."""
    match event:
        case Delivered():
            return data(event)
        case PresenceChanged():
            time = protocol.iso(event.time_ms)
            return orjson.dumps({"type": "PRESENCE", "topic": event.topic, **event.about, "timestamp": time})
    raise TypeError(f"the native protocol has no form for {type(event).__name__}")


def data(event: Delivered) -> bytes:
    """A DATA message. Extras and data are JSON already and stay as they are."""
    time, topic, extras, value = message.unpack(event.body)
    more = b"" if extras == message.NO_EXTRAS else b"%s," % extras[1:-1]
    end = b',"initialData":true}' if event.initial else b"}"
    if event.position is not None:
        epoch, offset, mark = event.position
        marked = b"" if mark is None else b',"mark":%d' % mark
        end = b',"offset":%d,"epoch":"%s"%s%s' % (offset, epoch.encode(), marked, end)
    return b'{"type":"DATA","topic":"%s",%s"data":%s,"timestamp":"%s"%s' % (topic, more, value, time, end)


def history(page: History) -> dict[str, Json]:
    """A part of a topic's history, as REQUEST and the HTTP API answer it."""
    messages = [orjson.Fragment(data(event)) for event in page.messages]
    return {"epoch": page.epoch, "offset": page.offset, "mark": page.mark, "messages": messages}

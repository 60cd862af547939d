"""A published message in the form that Redis carries: the same for every protocol.  (pure)

The form is one header line, then the data as JSON text:

    <time, ISO 8601> <topic> <extras, a JSON object>\\n<data>

Pub/sub, streams and snapshots hold these bytes, called a body. A node splits them and never parses the JSON; the
protocol of a client puts the parts together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.core import timestamps
from gateway.core.json_text import Json

NO_EXTRAS: Final = b"{}"
SENDER: Final = "sender"  # among the extras: the client that published the message, if its protocol shows senders


def pack(topic: str, data: Json, extras: Mapping[Any, Json], time_ms: int) -> bytes:
    """The body of a message; JSON can hold `data` and `extras`. `time_ms`: since 1970."""
    written = orjson.dumps(extras) if extras else NO_EXTRAS
    return b"%s %s %s\n%s" % (timestamps.iso_time(time_ms).encode(), topic.encode(), written, orjson.dumps(data))


def unpack(body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Time, topic, extras (action, subtype, priority, tags and sender) and data of `body`.

    Raises:
        ValueError: `body` is not a message's.
    """
    header, _, data = body.partition(b"\n")
    time, topic, extras = header.split(b" ", 2)
    return time, topic, extras, data


def sender_of(extras: bytes) -> dict[str, Any] | None:
    """The client that published a message, as presence lists it; None: the message does not name it."""
    if b'"sender"' not in extras:
        return None
    try:
        sender = orjson.loads(extras).get(SENDER)
    except ValueError:  # another program may have written it
        return None
    return sender if isinstance(sender, dict) and isinstance(sender.get("clientId"), str) else None


def check(body: bytes) -> bytes:
    """Validate `body`, which another program may have written, and return it. The JSON in it is not parsed.

    Gateway 0.1.0 wrote the text that clients receive; such a text is converted to a body.

    Raises:
        ValueError: `body` is not a message's, or not UTF-8.
    """
    if not body.isascii():
        body.decode()
    if body[:1] == b"{":
        return _of_text(body)
    _, topic, extras, data = unpack(body)
    if not (topic and data and extras[:1] == b"{" and extras[-1:] == b"}"):
        raise ValueError("a message has a time, a topic, extras and data")
    return body


def _of_text(text: bytes) -> bytes:
    match orjson.loads(text):
        case {"type": "DATA", "topic": str(topic), "data": data, "timestamp": str(time), **more} if " " not in topic:
            extras = {name: more[name] for name in ("action", "subtype", "priority") if name in more}
            return b"%s %s %s\n%s" % (time.encode(), topic.encode(), orjson.dumps(extras), orjson.dumps(data))
    raise ValueError("neither a message nor the text of one")

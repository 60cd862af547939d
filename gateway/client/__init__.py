"""The Python client: one connection to the cluster that reconnects by itself, recovers, and reports every gap.

    async with Gateway("ws://localhost:8080/ws", token=token) as gateway:
        contest = await gateway.subscribe("contest")
        async for message in contest:
            print(message.offset, message.data)

After a lost connection the client reconnects, subscribes again and recovers. On a topic with history it delivers each
message once and in order. If a message is no longer available, `Subscription.events` yields a `Gap` instead.

    address.py        checks the URL of the server                                     (pure)
    server_limits.py  the server's limits: message sizes and rates                     (pure)
    topic_position.py the client's position in one topic                               (pure)
    delta_base.py     the text to which the next delta of a topic applies              (pure)
    known_topic.py    what the client knows of a topic, and of a SUBSCRIBE
    backoff.py        backoff, heartbeat, and the time to replace a token              (pure)
    events.py         events and errors                                                (pure)
    subscription.py   the events of one topic for one caller
    subscriptions.py  all subscriptions: which messages to send and who receives which (pure)
    wire.py           the protocol on one socket
    tokens.py         logs in, and replaces a token before it expires
    gateway.py        the client: connects, logs in, reconnects
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.client.events import (
        Closed,
        Disconnected,
        Event,
        Gap,
        GatewayError,
        Message,
        NoAnswer,
        Presence,
        Recovered,
        Refused,
        TooLarge,
        TooSlow,
    )
    from gateway.client.gateway import Gateway, State
    from gateway.client.subscription import Subscription
    from gateway.client.timing import Timing

__all__ = [
    "Closed", "Disconnected", "Event", "Gap", "Gateway", "GatewayError", "Message", "NoAnswer", "Presence", "Recovered",
    "Refused", "State", "Subscription", "Timing", "TooLarge", "TooSlow",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a name at its first use (PEP 562), so that programs that may not need the client start fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"Gateway": "gateway", "State": "gateway", "Timing": "gateway", "Subscription": "subscription"}
    return getattr(import_module(f"{__name__}.{home.get(name, 'events')}"), name)

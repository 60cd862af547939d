"""The Python client: one socket to the cluster, kept alive; every topic in order, and the truth about what was missed.

    async with Gateway("ws://localhost:8080/ws", token=token) as gateway:
        contest = await gateway.subscribe("contest")
        async for message in contest:
            print(message.offset, message.data)

It reconnects by itself, subscribes again and recovers: on a topic with history each message is handed on once and in
order, whatever happened between; where one cannot be had any more, `Subscription.events` has a `Gap` in its place.

    address.py        the server's URL, checked                        (pure)
    limits.py         the server's limits: sizes and rates             (pure)
    place.py          where a subscriber is in a topic                     (pure)
    pace.py           when to try again, when a silent server is dead, when a token is replaced   (pure)
    events.py         what a caller gets, and what can go wrong            (pure)
    subscription.py   what one caller hears of one topic
    topics.py         all subscriptions: what to send, and which of them receive what   (pure)
    conversation.py   what goes over one socket
    tokens.py         log in, and replace a token before it expires
    gateway.py        the client's life: connect, log in, come back
"""

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
from gateway.client.gateway import Gateway, State, Timing
from gateway.client.subscription import Subscription

__all__ = [
    "Closed", "Disconnected", "Event", "Gap", "Gateway", "GatewayError", "Message", "NoAnswer", "Presence", "Recovered",
    "Refused", "State", "Subscription", "Timing", "TooLarge", "TooSlow",
]  # fmt: skip

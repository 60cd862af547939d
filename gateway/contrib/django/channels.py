"""A channel layer that publishes to the gateway's clients: ``group_send``, and nothing else.

    CHANNEL_LAYERS = {"default": {"BACKEND": "gateway.contrib.django.channels.GatewayChannelLayer"}}

Existing code that calls ``group_send`` publishes on the topic with the group's name. The gateway's clients subscribe
themselves, so there are no channels to send to, receive from, or put into groups.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

from channels.layers import BaseChannelLayer

from gateway.contrib.django import get_publisher


class GatewayChannelLayer(BaseChannelLayer):
    """The channel layer. It publishes with the setting GATEWAY; its own configuration is empty."""

    extensions = ("groups",)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Publish `message` on the topic `group`; its ``type`` becomes the ``action`` that clients receive.

        Raises:
            ProtocolError, Unavailable: As `SyncPublisher.publish`.
        """
        data = {name: value for name, value in message.items() if name != "type"}
        action = {"action": message["type"]} if "type" in message else {}
        published = get_publisher().submit([{"topic": group, "data": data, **action}])
        await asyncio.wrap_future(published)

    async def send(self, channel: str, message: dict[str, Any]) -> NoReturn:
        """Not supported."""
        _refuse("send", 'publish to one user with publish(topic, data, to={"user": …})')

    async def receive(self, channel: str) -> NoReturn:
        """Not supported."""
        _refuse("receive", "clients connect to the gateway, not to a consumer")

    async def new_channel(self, prefix: str = "specific.") -> NoReturn:
        """Not supported."""
        _refuse("new_channel", "clients connect to the gateway, not to a consumer")

    async def group_add(self, group: str, channel: str) -> NoReturn:
        """Not supported."""
        _refuse("group_add", "clients subscribe themselves to the topic with the group's name")

    async def group_discard(self, group: str, channel: str) -> NoReturn:
        """Not supported."""
        _refuse("group_discard", "clients unsubscribe themselves")


def _refuse(method: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"the gateway's channel layer has no {method}: {instead}")

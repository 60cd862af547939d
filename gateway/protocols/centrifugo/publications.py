"""Messages as Centrifugo's publications, and clients as it shows them.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.core import message, tags
from gateway.core.events import Broadcast, Delivered, DeltaDelivered
from gateway.core.presence_set import Member
from gateway.protocols.centrifugo.codec import Codec, Fields


def publication(codec: Codec, event: Delivered, extras: bytes, data: bytes) -> Fields:
    """A message as a publication. Its data stays as it is; `extras` is the small JSON object beside it.

    A client that receives deltas reads all data as bytes: of a delta, or of the JSON text.
    """
    found: dict[str, Any] = {"data": data}
    if isinstance(event, DeltaDelivered):
        delta = event.delta()
        found = {"data": codec.raw(data)} if delta is None else {"data": codec.raw(delta), "delta": True}
    if event.position is not None:
        found["offset"] = event.position.offset
    if extras != message.NO_EXTRAS:
        named = tags.of_extras(extras)
        if named:
            found["tags"] = named
        sender = message.sender_of(extras)
        if sender is not None:
            found["info"] = client_info(sender)
    return found


def client_info(client: Mapping[str, Any]) -> Fields:
    """A client as presence lists it, or as the sender of a message."""
    info = orjson.dumps(client["info"]) if "info" in client else b""
    fields = {"user": client.get("user"), "client": client["clientId"], "conn_info": info}
    return {name: value for name, value in fields.items() if value}


def member_info(member: Member) -> Fields:
    """A client that joined or left."""
    fields = {"user": member.user, "client": member.client_id, "conn_info": member.info}
    return {name: value for name, value in fields.items() if value}


class Publications:
    """Encodes the publications within replies, each at most once for each encoding."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """A publication without a frame."""
        assert isinstance(event, Delivered)
        _, _, extras, data = message.unpack(event.body)
        return self._codec.write("Publication", publication(self._codec, event, extras, data))

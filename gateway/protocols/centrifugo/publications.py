"""Messages as Centrifugo's publications, and clients as it shows them.  (pure)"""

from __future__ import annotations

from typing import Any

from gateway.core import message, tags
from gateway.core.events import Broadcast, Delivered
from gateway.core.presence_set import Member
from gateway.protocols.centrifugo.codec import Codec, Fields


def publication(event: Delivered, extras: bytes, data: bytes) -> Fields:
    """A message as a publication. Its data stays as it is; `extras` is the small JSON object beside it."""
    found: dict[str, Any] = {"data": data}
    if event.position is not None:
        found["offset"] = event.position.offset
    if extras != message.NO_EXTRAS:
        found["tags"] = tags.of_extras(extras)
    return found


def client_info(member: Member) -> Fields:
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
        return self._codec.write("Publication", publication(event, extras, data))

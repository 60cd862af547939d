"""Centrifugo's protocol as the node uses it: one object for each encoding, which all clients of the encoding share."""

from __future__ import annotations

from typing import Final

from gateway.core import frames, message
from gateway.core.events import Broadcast, ClientsChanged, Delivered
from gateway.core.session import Session
from gateway.protocols.centrifugo import codes
from gateway.protocols.centrifugo.codec import Codec, Fields, JsonCodec, ProtobufCodec, UnidirectionalCodec
from gateway.protocols.centrifugo.conversation import CentrifugoConversation
from gateway.protocols.centrifugo.publications import Publications, member_info, publication


class Centrifugo:
    """The protocol in one encoding. `name`: the WebSocket subprotocol."""

    error_codes: Final = codes.ERROR_CODES
    close_codes: Final = codes.CLOSE_CODES

    def __init__(self, name: str, codec: Codec) -> None:
        self.name = name
        self._codec = codec
        self._publications = Publications(codec)

    def conversation(self, client_id: str, session: Session) -> CentrifugoConversation:
        """A new client's conversation."""
        return CentrifugoConversation(self._codec, self._publications, client_id, session)

    def encode_broadcast(self, event: Broadcast) -> bytes:
        """One frame with a message, or with each client that joined or left; nothing for changes of people."""
        if isinstance(event, Delivered):
            _, topic, extras, data = message.unpack(event.body)
            return self._frame({"channel": topic.decode(), "pub": publication(self._codec, event, extras, data)})
        if isinstance(event, ClientsChanged):
            kinds = (("leave", event.changes.left), ("join", event.changes.joined))
            return b"".join(
                self._frame({"channel": event.topic, kind: {"info": member_info(member)}})
                for kind, members in kinds
                for member in members
            )
        return b""

    def _frame(self, push: Fields) -> bytes:
        return frames.build(self._codec.opcode, self._codec.join([self._codec.write("Reply", {"push": push})]))


JSON: Final = Centrifugo("centrifuge-json", JsonCodec())
PROTOBUF: Final = Centrifugo("centrifuge-protobuf", ProtobufCodec())
UNIDIRECTIONAL: Final = Centrifugo(
    "centrifuge-unidirectional", UnidirectionalCodec()
)  # no subprotocol asks for it, but a path

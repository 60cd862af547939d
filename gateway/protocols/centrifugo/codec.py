"""The two encodings of commands and replies: JSON and Protobuf. Both read and write the same values.  (pure)

A command or reply is a dict with the field names of Centrifugo's `client.proto`. A field that holds JSON is a value in
commands of JSON clients, and bytes in commands of Protobuf clients and in replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import orjson

from gateway.core import frames
from gateway.core.json_text import Json, loads
from gateway.protocols.centrifugo import protobuf

Fields: TypeAlias = Mapping[str, Any]


class Codec(Protocol):
    """An encoding."""

    opcode: int  # of the WebSocket frames
    unidirectional: bool  # the client sends nothing but one `connect`, and gets no replies but pushes

    def split(self, payload: bytes, most: int) -> Sequence[bytes]:
        """The messages in one frame: at most `most` of them and one more.

        Raises:
            ValueError: The frame is malformed.
        """

    def read(self, message: bytes) -> dict[str, Any]:
        """The command in one message.

        Raises:
            ValueError: The message is malformed.
        """

    def json(self, value: Any) -> Json:
        """The value of a field that holds JSON.

        Raises:
            ValueError: It is not JSON.
        """

    def write(self, kind: str, fields: Fields) -> bytes:
        """The text of a message. `kind`: Reply, Push or Publication."""

    def raw(self, data: bytes) -> bytes:
        """UTF-8 text in a field that holds JSON, for a client that takes it as bytes."""

    def join(self, messages: Sequence[bytes]) -> bytes:
        """One payload with all messages."""


class JsonCodec:
    """One JSON text per line."""

    opcode = frames.TEXT
    unidirectional = False

    def split(self, payload: bytes, most: int) -> Sequence[bytes]:
        """The lines. The last one may end with a line break."""
        return payload.removesuffix(b"\n").split(b"\n", most)

    def read(self, message: bytes) -> dict[str, Any]:
        """The command in one line."""
        fields = loads(message)
        if not isinstance(fields, dict):
            raise ValueError("not an object")  # noqa: TRY004
        return fields

    def json(self, value: Any) -> Json:
        """The value itself."""
        return value

    def write(self, _kind: str, fields: Fields) -> bytes:
        """The JSON text."""
        return orjson.dumps(fields, default=orjson.Fragment)  # bytes are JSON already

    def raw(self, data: bytes) -> bytes:
        """A JSON string with the text."""
        return orjson.dumps(data.decode())

    def join(self, messages: Sequence[bytes]) -> bytes:
        """The texts, one per line."""
        return b"\n".join(messages)


class UnidirectionalCodec(JsonCodec):
    """JSON for a client that only listens: it sends the fields of `connect`, and receives pushes without a wrapper."""

    unidirectional = True

    def split(self, payload: bytes, _most: int) -> Sequence[bytes]:
        """The payload, one message."""
        return (payload,)

    def read(self, message: bytes) -> dict[str, Any]:
        """The fields of `connect` as a command."""
        return {"id": 1, "connect": super().read(message)}

    def write(self, kind: str, fields: Fields) -> bytes:
        """The push in a reply. The reply to `connect` is a push too."""
        if kind == "Reply":
            fields = fields.get("push") or {name: fields[name] for name in fields if name == "connect"}
        return super().write(kind, fields)


class ProtobufCodec:
    """Protobuf messages, each behind its length."""

    opcode = frames.BINARY
    unidirectional = False

    def split(self, payload: bytes, most: int) -> Sequence[bytes]:
        """The messages of the frame."""
        return protobuf.split(payload, most)

    def read(self, message: bytes) -> dict[str, Any]:
        """The command in one message."""
        return protobuf.decode("Command", message)

    def json(self, value: Any) -> Json:
        """The value of a JSON text. Where lines are no messages, subscribers get the bytes that the publisher sent."""
        if value is None:
            return None
        parsed = loads(value)  # refuses what clients could not read
        return parsed if b"\n" in value or b"\r" in value else orjson.Fragment(value)

    def write(self, kind: str, fields: Fields) -> bytes:
        """The Protobuf message."""
        return protobuf.encode(kind, fields)

    def raw(self, data: bytes) -> bytes:
        """The bytes themselves."""
        return data

    def join(self, messages: Sequence[bytes]) -> bytes:
        """The messages, each behind its length."""
        return b"".join([protobuf.with_length(message) for message in messages])

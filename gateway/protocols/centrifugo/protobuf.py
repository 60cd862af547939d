"""Protobuf for the messages of Centrifugo's client protocol, by tables of their fields.  (pure)

A message is a dict from field names to values. Only fields with values other than their default are written. A field
of the kind `json` holds bytes. A message within a message may be bytes too: it is encoded already. Fields that a table
does not list are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

MAX_DEPTH: Final = 12  # messages within messages that are read
_VARINT, _FIXED64, _BYTES = 0, 1, 2  # wire types

# For each message its fields: name, number, kind. Kinds with a star are repeated, kinds with a percent sign are maps
# from strings.
_TABLES: Final = {
    "Error": "code 1 uint, message 2 string, temporary 3 bool",
    "Command": "id 1 uint, connect 4 ConnectRequest, subscribe 5 SubscribeRequest, unsubscribe 6 ChannelRequest, "
    "publish 7 PublishRequest, presence 8 ChannelRequest, presence_stats 9 ChannelRequest, history 10 HistoryRequest, "
    "ping 11 Empty, send 12 SendRequest, rpc 13 RPCRequest, refresh 14 RefreshRequest, "
    "sub_refresh 15 SubRefreshRequest",
    "Reply": "id 1 uint, error 2 Error, push 4 Push, connect 5 ConnectResult, subscribe 6 SubscribeResult, "
    "unsubscribe 7 Empty, publish 8 Empty, presence 9 PresenceResult, presence_stats 10 PresenceStatsResult, "
    "history 11 HistoryResult, ping 12 Empty, rpc 13 RPCResult, refresh 14 RefreshResult, "
    "sub_refresh 15 SubRefreshResult",
    "Push": "id 1 uint, channel 2 string, pub 4 Publication, join 5 Join, leave 6 Join, unsubscribe 7 Unsubscribe, "
    "message 8 Message, subscribe 9 Subscribe, disconnect 11 Disconnect, "
    "refresh 12 SubRefreshResult",
    "ClientInfo": "user 1 string, client 2 string, conn_info 3 json, chan_info 4 json",
    "Publication": "data 4 json, info 5 ClientInfo, offset 6 uint, tags 7 %string, delta 8 bool, time 9 uint",
    "Join": "info 1 ClientInfo",
    "Unsubscribe": "code 2 uint, reason 3 string",
    "Message": "data 1 json",
    "Disconnect": "code 1 uint, reason 2 string, reconnect 3 bool",
    "ConnectRequest": "token 1 string, data 2 json, subs 3 %SubscribeRequest, name 4 string, version 5 string, "
    "headers 6 %string, flag 7 uint",
    "ConnectResult": "client 1 string, version 2 string, expires 3 bool, ttl 4 uint, data 5 json, "
    "subs 6 %SubscribeResult, ping 7 uint, pong 8 bool, session 9 string, node 10 string, time 11 uint",
    "SubscribeRequest": "channel 1 string, token 2 string, recover 3 bool, epoch 6 string, offset 7 uint, data 8 json, "
    "positioned 9 bool, recoverable 10 bool, join_leave 11 bool, delta 12 string, tf 13 FilterNode, flag 14 uint, "
    "type 15 uint",
    "Subscribe": "recoverable 1 bool, epoch 4 string, offset 5 uint, positioned 6 bool, data 7 json",
    "SubscribeResult": "expires 1 bool, ttl 2 uint, recoverable 3 bool, epoch 6 string, publications 7 *Publication, "
    "recovered 8 bool, offset 9 uint, positioned 10 bool, data 11 json, was_recovering 12 bool, delta 13 bool, "
    "id 14 uint, type 15 uint",
    "ChannelRequest": "channel 1 string",
    "PublishRequest": "channel 1 string, data 2 json, type 3 uint, key 4 string, removed 5 bool",
    "PresenceResult": "presence 1 %ClientInfo",
    "PresenceStatsResult": "num_clients 1 uint, num_users 2 uint",
    "StreamPosition": "offset 1 uint, epoch 2 string",
    "HistoryRequest": "channel 1 string, limit 7 int, since 8 StreamPosition, reverse 9 bool",
    "HistoryResult": "publications 1 *Publication, epoch 2 string, offset 3 uint",
    "RPCRequest": "data 1 json, method 2 string",
    "RPCResult": "data 1 json",
    "SendRequest": "data 1 json",
    "RefreshRequest": "token 1 string",
    "RefreshResult": "client 1 string, version 2 string, expires 3 bool, ttl 4 uint",
    "SubRefreshRequest": "channel 1 string, token 2 string, type 3 uint",
    "SubRefreshResult": "expires 1 bool, ttl 2 uint",
    "FilterNode": "op 1 string, key 2 string, cmp 3 string, val 4 string, vals 5 *string, nodes 6 *FilterNode",
    "EmulationRequest": "node 1 string, session 2 string, data 3 json",
    "Empty": "",
}


class _Field(NamedTuple):
    name: str
    number: int
    kind: str
    many: str  # "": one value; "*": a list; "%": a map


def _fields(table: str) -> list[_Field]:
    found = []
    for row in filter(None, table.split(", ")):
        name, number, kind = row.split(" ")
        many = kind[0] if kind[0] in "*%" else ""
        found.append(_Field(name, int(number), kind.removeprefix(many), many))
    return found


_BY_NAME: Final = {message: {field.name: field for field in _fields(table)} for message, table in _TABLES.items()}
_BY_NUMBER: Final = {message: {field.number: field for field in _fields(table)} for message, table in _TABLES.items()}


# ---- writing


def encode(message: str, fields: Mapping[str, Any]) -> bytes:
    """The bytes of a message with these fields."""
    parts: list[bytes] = []
    known = _BY_NAME[message]
    for name, value in fields.items():
        _, number, kind, many = known[name]
        if many == "%":
            for key, each in value.items():
                entry = _encode_field(1, "string", key) + _encode_field(2, kind, each)
                parts.append(_delimited(number, entry))
        elif many:
            parts += [_encode_field(number, kind, each, always=True) for each in value]
        else:
            parts.append(_encode_field(number, kind, value))
    return b"".join(parts)


def _encode_field(number: int, kind: str, value: Any, *, always: bool = False) -> bytes:
    match kind:
        case "uint" | "int" | "bool":
            return _varint(number << 3 | _VARINT) + _varint(int(value) & 0xFFFFFFFFFFFFFFFF) if value else b""
        case "string":
            data = value.encode()
        case "json":
            data = value
        case _:  # a message is written even if it is empty: its presence says which reply this is
            data, always = value if isinstance(value, bytes) else encode(kind, value), True
    return _delimited(number, data) if data or always else b""


def _delimited(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + with_length(data)


def with_length(data: bytes) -> bytes:
    """`data` behind its length."""
    return _varint(len(data)) + data


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


# ---- reading


def split(payload: bytes, most: int) -> list[bytes]:
    """The messages in `payload`, each behind its length: at most `most` of them and one more.

    Raises:
        ValueError: A length is wrong.
    """
    found: list[bytes] = []
    at = 0
    while at < len(payload) and len(found) <= most:
        data, at = _read_bytes(payload, at)
        found.append(data)
    return found or [b""]


def decode(message: str, data: bytes, depth: int = 0) -> dict[str, Any]:
    """The fields of a message.

    Raises:
        ValueError: `data` is not such a message.
    """
    if depth > MAX_DEPTH:
        raise ValueError("messages are nested too deeply")
    found: dict[str, Any] = {}
    known, at = _BY_NUMBER[message], 0
    while at < len(data):
        key, at = _read_varint(data, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = _read_varint(data, at)
            case 2:
                value, at = _read_bytes(data, at)
            case 1 | 5 as fixed:  # no field of ours
                value, at = b"", at + (8 if fixed == _FIXED64 else 4)
                key = 0
            case wire_type:
                raise ValueError(f"wire type {wire_type}")
        field = known.get(key >> 3)
        if field is None:
            continue
        if isinstance(value, int) is not (field.kind in ("uint", "int", "bool") and not field.many):
            raise ValueError(f"field {field.number} of {message} has the wrong type")
        if field.many == "%":
            entry = _read_entry(field, value, depth)
            found.setdefault(field.name, {}).update(entry)
        elif field.many:
            found.setdefault(field.name, []).append(_value(field.kind, value, depth))
        else:
            found[field.name] = _value(field.kind, value, depth)
    if at > len(data):
        raise ValueError("cut off")
    return found


def _value(kind: str, value: Any, depth: int) -> Any:
    match kind:
        case "uint" | "json":
            return value
        case "int":
            low = value & 0xFFFFFFFF
            return low - (1 << 32) if low >> 31 else low
        case "bool":
            return bool(value)
        case "string":
            return value.decode()
    return decode(kind, value, depth + 1)


def _read_entry(field: _Field, data: Any, depth: int) -> dict[str, Any]:
    key, value, at = "", b"", 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        if tag not in (1 << 3 | _BYTES, 2 << 3 | _BYTES):
            raise ValueError("a map entry has the wrong type")
        part, at = _read_bytes(data, at)
        if tag >> 3 == 1:
            key = part.decode()
        else:
            value = part
    return {key: _value(field.kind, value, depth)}


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise ValueError("cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError("a number of more than ten bytes")


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _read_varint(data, at)
    if size > len(data) - at:
        raise ValueError("cut off")
    return data[at : at + size], at + size

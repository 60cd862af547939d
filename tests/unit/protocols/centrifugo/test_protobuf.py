"""gateway.protocols.centrifugo.protobuf, against the code that Google's compiler has made for Centrifugo's clients."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from centrifuge.protocol import client_pb2  # type: ignore[import-untyped]
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.tag_filter import MAX_DEPTH
from gateway.protocols.centrifugo import protobuf

# The names of the messages that several commands or replies share here.
SHARED = {"ChannelRequest": "UnsubscribeRequest", "Join": "Leave", "Empty": "UnsubscribeResult"}
DEEPEST = 3
# Fields of map and shared poll subscriptions, which the library does not know yet.
NEWER = {"type", "key", "removed"}


def theirs(name: str) -> Any:
    return getattr(client_pb2, SHARED.get(name, name))


def test_each_field_has_the_number_of_the_protocol() -> None:
    for name, fields in protobuf._BY_NAME.items():
        known = theirs(name).DESCRIPTOR.fields_by_name
        for field in fields.values():
            if field.name in NEWER and field.name not in known:
                continue
            assert known[field.name].number == field.number, f"{name}.{field.name}"


def values(kind: str, depth: int = 0) -> st.SearchStrategy[Any]:
    match kind:
        case "uint":
            return st.integers(1, 2**32 - 1)
        case "int":
            return st.integers(-(2**31), 2**31 - 1).filter(bool)
        case "bool":
            return st.just(True)
        case "string":
            return st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
        case "json":
            return st.binary(min_size=1)
    return messages(kind, depth + 1)


def messages(name: str, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    if depth > DEEPEST:
        return st.just({})
    fields = {}
    for field in protobuf._BY_NAME[name].values():
        if field.name not in theirs(name).DESCRIPTOR.fields_by_name:
            continue
        one = values(field.kind, depth)
        if field.many == "%":
            one = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), one, min_size=1, max_size=2)
        elif field.many:
            one = st.lists(one, min_size=1, max_size=2)
        fields[field.name] = one
    return st.fixed_dictionaries({}, optional=fields)


def as_dict(message: Any) -> Any:
    """A message of the library, in our form."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = {key: as_value(each) for key, each in value.items()}
        else:
            found[field.name] = [as_value(each) for each in value] if field.is_repeated else as_value(value)
    return found


def as_value(value: Any) -> Any:
    return as_dict(value) if hasattr(value, "ListFields") else value


@given(st.sampled_from(["Reply", "Command", "Publication", "Push"]), st.data())
def test_it_writes_and_reads_what_the_library_does(name: str, data: st.DataObject) -> None:
    fields = data.draw(messages(name))
    message = theirs(name)()
    written = protobuf.encode(name, fields)
    message.ParseFromString(written)
    assert as_dict(message) == fields
    assert protobuf.decode(name, message.SerializeToString()) == fields
    assert MessageToDict(message) is not None


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (lambda: protobuf.decode("Command", data), lambda: protobuf.split(data, 10)):
        with contextlib.suppress(ValueError):
            read()


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_messages_stand_behind_their_lengths(parts: list[bytes]) -> None:
    payload = b"".join(map(protobuf.with_length, parts))
    assert protobuf.split(payload, 10) == parts
    assert protobuf.split(payload, 2) == parts[:3]


@pytest.mark.parametrize(
    "data",
    [
        b"\x80" * 11,  # a number without an end
        b"\x08",  # a key without a value
        b"\x22\x05ab",  # shorter than its length
        b"\x0b",  # groups
        b"\x20\x01",  # a number for a message
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        protobuf.decode("Command", data)


def test_depth_has_a_bound() -> None:
    tree: dict[str, Any] = {"cmp": "ex", "key": "k"}
    for _ in range(MAX_DEPTH - 1):  # the deepest filter that is valid
        tree = {"op": "not", "nodes": [tree]}
    command = {"id": 1, "subscribe": {"channel": "a", "tf": tree}}
    assert protobuf.decode("Command", protobuf.encode("Command", command)) == command
    for _ in range(protobuf.MAX_DEPTH):
        tree = {"op": "not", "nodes": [tree]}
    with pytest.raises(ValueError, match="too deeply"):
        protobuf.decode("FilterNode", protobuf.encode("FilterNode", tree))


def test_unknown_fields_are_skipped() -> None:
    more = b"\xfa\x01\x02ab" + b"\xf9\x01" + bytes(8) + b"\xfd\x01" + bytes(4)
    assert protobuf.decode("Error", b"\x08\x07" + more) == {"code": 7}

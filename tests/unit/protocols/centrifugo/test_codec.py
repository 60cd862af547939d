"""gateway.protocols.centrifugo.codec: the data of publications in both encodings."""

from __future__ import annotations

import orjson
import pytest

from gateway.protocols.centrifugo.codec import JsonCodec, ProtobufCodec


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b'{"a": 1.0,  "b":[]}', b'{"a": 1.0,  "b":[]}'),
        (b'{"a":\n1}', b'{"a":1}'),  # a line break would end a message of a stream over HTTP
        (b"[1,\r2]", b"[1,2]"),
    ],
)
def test_the_data_of_a_protobuf_client_stays_as_it_is(sent: bytes, kept: bytes) -> None:
    assert orjson.dumps(ProtobufCodec().json(sent)) == kept


@pytest.mark.parametrize("sent", [b"", b"{", b"\xff", b"1e999"])
def test_data_that_is_not_json_is_refused(sent: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ProtobufCodec().json(sent)


def test_a_command_without_data_has_none() -> None:
    assert ProtobufCodec().json(None) is None and JsonCodec().json({"a": 1}) == {"a": 1}

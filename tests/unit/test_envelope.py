"""What travels on an audience's channel."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cluster.envelope import Envelope

client_ids = st.from_regex(r"[A-Za-z0-9_.\-]{1,200}", fullmatch=True)
moments = st.integers(0, 4_102_444_800_000)
addressees = st.one_of(
    st.just((None, None)), client_ids.map(lambda client: (client, None)), client_ids.map(lambda client: (None, client))
)


@settings(deadline=None, max_examples=200)
@given(moments, st.binary(max_size=100), addressees)
def test_whatever_is_packed_is_unpacked(
    published_ms: int, text: bytes, addressee: tuple[str | None, str | None]
) -> None:
    only, exclude = addressee
    envelope = Envelope(published_ms, text, only=only, exclude=exclude)
    assert Envelope.unpack(envelope.pack()) == envelope


def test_its_form_is_one_header_line_and_the_text_untouched() -> None:
    text = b'{"data":"1 2 -\\n"}\n\n'
    assert Envelope(1795502108477, text).pack() == b"1 1795502108477 -\n" + text
    assert Envelope(5, b"x", only="n.b.1").pack() == b"1 5 @n.b.1\nx"
    assert Envelope(5, b"x", exclude="n.b.1").pack() == b"1 5 !n.b.1\nx"


@settings(deadline=None, max_examples=500)
@given(st.one_of(st.binary(max_size=60), st.binary(max_size=20).map(lambda rest: b"1 5 " + rest)))
def test_any_other_bytes_are_a_value_error_and_nothing_else(payload: bytes) -> None:
    with suppress(ValueError):
        envelope = Envelope.unpack(payload)
        assert payload.endswith(envelope.text)
        assert envelope.only is None or envelope.exclude is None


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\n", b"{}", b'{"topic":"contest","data":1}', b"1 5 -", b"1 5\nx", b"1 5 \nx", b"2 5 -\nx", b"01 5 -\nx",
        b"1 x -\nx", b"1  -\nx", b"1 5 ann\nx", b"1 5 -x\nx", b"1 5 @\xff\nx", b"1 " + b"9" * 5000 + b" -\nx",
    ],
)  # fmt: skip
def test_these_are_not_ours(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Envelope.unpack(payload)

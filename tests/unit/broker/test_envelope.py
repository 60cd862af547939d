"""What travels on an audience's channel."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker.envelope import Envelope, EnvelopeKind, UnknownEnvelopeVersion

client_ids = st.from_regex(r"[A-Za-z0-9_.\-]{1,200}", fullmatch=True)
moments = st.integers(0, 4_102_444_800_000)
marks = st.integers(0, 2**53 - 1)
addressees = st.one_of(
    st.just((None, None)), client_ids.map(lambda client: (client, None)), client_ids.map(lambda client: (None, client))
)
kinds = st.one_of(
    st.fixed_dictionaries({"kind": st.just(EnvelopeKind.PLAIN), "conflate_ms": st.integers(0, 60_000)}),
    st.fixed_dictionaries(
        {"kind": st.just(EnvelopeKind.SNAPSHOT), "conflate_ms": st.integers(0, 60_000), "version": marks}
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just(EnvelopeKind.HISTORY),
            "epoch": st.from_regex(r"[a-z0-9]{1,64}", fullmatch=True),
            "offset": marks,
            "mark": marks,
            "previous": marks,
        }
    ),
)


@settings(deadline=None, max_examples=300)
@given(moments, st.binary(max_size=100), addressees, kinds)
def test_unpacking_reverses_packing(
    published_ms: int, text: bytes, addressee: tuple[str | None, str | None], kind: dict[str, object]
) -> None:
    only, exclude = addressee
    envelope = Envelope(published_ms, text, only=only, exclude=exclude, **kind)  # type: ignore[arg-type]
    assert Envelope.unpack(envelope.pack()) == envelope


def test_its_form_is_one_header_line_and_the_body_untouched() -> None:
    text = b'{"data":"1 2 -\\n"}\n\n'
    assert Envelope(1795502108477, text).pack() == b"3 1795502108477 - P 0\n" + text
    assert Envelope(5, b"x", only="n.b.1").pack() == b"3 5 @n.b.1 P 0\nx"
    assert Envelope(5, b"x", exclude="n.b.1", conflate_ms=300).pack() == b"3 5 !n.b.1 P 300\nx"
    assert Envelope(5, b"x", kind=EnvelopeKind.NODES).pack() == b"3 5 - N\nx"
    assert Envelope(5, b"x", kind=EnvelopeKind.SNAPSHOT, version=7).pack() == b"3 5 - S 0 7\nx"
    place = Envelope(5, b"x", kind=EnvelopeKind.HISTORY, epoch="e", offset=2, mark=20, previous=10)
    assert place.header() == b"3 5 - H"
    assert place.pack() == b"3 5 - H e 2 20 10\nx"


@pytest.mark.parametrize(
    ("payload", "envelope"),
    [
        (b"1 5 -\nx", Envelope(5, b"x")),
        (b"1 5 @n.b.1\nx", Envelope(5, b"x", only="n.b.1")),
        (b"1 5 - - 7\nx", Envelope(5, b"x", kind=EnvelopeKind.SNAPSHOT, version=7)),
        (b"1 5 ~\nx", Envelope(5, b"x", kind=EnvelopeKind.NODES)),
    ],
)
def test_messages_of_the_version_before_that_need_no_mark_are_read(payload: bytes, envelope: Envelope) -> None:
    assert Envelope.unpack(payload) == envelope


@pytest.mark.parametrize("payload", [b"2 5 - P 0\nx", b"4 5 whatever\nx", b"1 5 - e 2\nx", b"17 1 2 3 4 5 6 7\nx"])
def test_an_unsupported_version_is_distinguished_from_a_foreign_payload(payload: bytes) -> None:
    with pytest.raises(UnknownEnvelopeVersion, match=r"version \d+: this node reads version 3"):
        Envelope.unpack(payload)


@settings(deadline=None, max_examples=500)
@given(st.one_of(st.binary(max_size=60), st.binary(max_size=20).map(lambda rest: b"3 5 " + rest)))
def test_any_other_bytes_are_a_value_error_and_nothing_else(payload: bytes) -> None:
    with suppress(ValueError):
        envelope = Envelope.unpack(payload)
        assert payload.endswith(envelope.body)
        assert envelope.only is None or envelope.exclude is None


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\n", b"{}", b'{"topic":"contest","data":1}', b"3 5 -", b"3 5\nx", b"3 5 \nx", b"3 5 - P\nx",
        b"3 x - P 0\nx", b"3  - P 0\nx", b"3 5 ann P 0\nx", b"3 5 -x P 0\nx", b"3 5 @ P 0\nx",
        b"3 " + b"9" * 5000 + b" - P 0\nx", b"3 5 - P -1\nx", b"3 5 - P 1_0\nx", b"3 5 - S 0\nx", b"3 5 - N 0\nx",
        b"3 5 - H e 1 2\nx", b"3 5 - H - 1 2 3\nx", b"3 5 - H e x 2 3\nx", b'3 5 - H e" 1 2 3\nx',
    ],
)  # fmt: skip
def test_these_are_not_ours(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an? "):
        Envelope.unpack(payload)

"""Deltas are exact, small, bounded, and readable for other programs.

`fossil_deltas.json` has deltas of the Go package that Centrifugo uses, and deltas of ours that this package and the
decoder of the npm package `centrifuge` have applied. Where the Go package divides a character, its delta is left out.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import fossil_delta
from gateway.core.fossil_delta import MAX_BYTES, InvalidDelta

VECTORS = orjson.loads((Path(__file__).parent / "fossil_deltas.json").read_bytes())
LIMIT = 1 << 20

PARTS = st.lists(
    st.sampled_from(["a", "é", "日本", "🙂", '{"price":', "0123456789abcdefghij", "x" * 40, "\n"]), max_size=60
)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_bytes_come_back(old: bytes, new: bytes) -> None:
    delta = fossil_delta.create(old, new)
    if delta is not None:
        assert len(delta) < len(new)
        assert fossil_delta.apply(old, delta, len(new)) == new


@given(PARTS, PARTS)
def test_texts_come_back_and_deltas_of_texts_are_text(old_parts: list[str], new_parts: list[str]) -> None:
    old, new = "".join(old_parts).encode(), "".join(new_parts).encode()
    delta = fossil_delta.create(old, new)
    if delta is not None:
        delta.decode()
        assert fossil_delta.apply(old, delta, LIMIT) == new


@given(st.data())
def test_edited_texts_come_back(data: st.DataObject) -> None:
    old = "".join(data.draw(PARTS)).encode() * 4
    new = bytearray(old)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(new)))
        new[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    delta = fossil_delta.create(old, bytes(new))
    assert delta is None or fossil_delta.apply(old, delta, LIMIT) == new


@given(st.binary(max_size=40), st.binary(max_size=60) | st.text(alphabet="0123Az~:@;,\n", max_size=20).map(str.encode))
def test_any_bytes_are_a_delta_or_invalid(old: bytes, delta: bytes) -> None:
    with contextlib.suppress(InvalidDelta):
        assert len(fossil_delta.apply(old, delta, 100)) <= 100


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_deltas_of_other_programs_are_read_and_ours_stay_readable(vector: dict[str, str]) -> None:
    old, new = vector["old"].encode(), vector["new"].encode()
    if vector["theirs"]:
        assert fossil_delta.apply(old, vector["theirs"].encode(), LIMIT) == new
    assert (fossil_delta.create(old, new) or b"").decode() == vector["ours"]


def test_small_changes_have_small_deltas() -> None:
    items = [{"symbol": f"TOKEN{number}", "price": number * 1.25, "volume": number} for number in range(100)]
    old = orjson.dumps(items)
    items[3]["price"] = 99.5
    items[70]["price"] = 1000000.25
    delta = fossil_delta.create(old, orjson.dumps(items))
    assert delta is not None
    assert len(delta) < 70


def test_moved_parts_are_found() -> None:
    generator = random.Random(4)
    first, second = generator.randbytes(1000), generator.randbytes(1000)
    delta = fossil_delta.create(first + second, second + b"between" + first)
    assert delta is not None
    assert len(delta) < 50
    assert fossil_delta.apply(first + second, delta, LIMIT) == second + b"between" + first


def test_no_delta_where_the_text_is_not_larger() -> None:
    assert fossil_delta.create(b"", b"") is None
    assert fossil_delta.create(b"abc", b"abd") is None
    assert fossil_delta.create(b"a" * 50, b"b" * 50) is None


def test_texts_over_the_limit_have_no_delta() -> None:
    text = b"a" * MAX_BYTES
    assert fossil_delta.create(text, text) is not None
    assert fossil_delta.create(text + b"a", text) is None
    assert fossil_delta.create(text, text + b"a") is None


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(5)
    head, same, old, new = (generator.randbytes(size) for size in (1000, 1000, 5000, 5000))
    monkeypatch.setattr(fossil_delta, "MAX_STEPS", 6000)
    found = fossil_delta.create(head + same + old, head + new + same + b"!")
    monkeypatch.setattr(fossil_delta, "MAX_STEPS", 4000)
    cut_short = fossil_delta.create(head + same + old, head + new + same + b"!")
    assert found is not None
    assert cut_short is not None
    assert len(found) < 5100 < 6000 < len(cut_short)
    assert fossil_delta.apply(head + same + old, cut_short, LIMIT) == head + new + same + b"!"


DELTA = fossil_delta.create(b"a text that is long enough, here", b"a text that is long enough, there") or b""


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        (b"", "begins with the size"),
        (b"12", "begins with the size"),
        (b"3:abc", "begins with the size"),
        (b"Hh\n", "exceeds the limit of 100"),
        (b"3\n", "no command at byte 2"),
        (b"3\n3!abc", "no command at byte 2"),
        (b"3\n4:abcd1;", "exceeds a text or the stated size"),
        (b"3\n3:ab", "exceeds a text or the stated size"),
        (b"3\n3@0;", "a copy without an offset"),
        (b"3\n3@Z,0;", "exceeds a text or the stated size"),
        (b"3\n2:ab1;", "its size or checksum differs"),
        (b"3\n3:abc1;", "its size or checksum differs"),
        (DELTA + b"0", "its size or checksum differs"),
        (DELTA[:-1], "no command"),
    ],
)
def test_damaged_deltas_are_invalid(delta: bytes, reason: str) -> None:
    with pytest.raises(InvalidDelta, match=reason):
        fossil_delta.apply(b"a text that is long enough, here", delta, 100)


def test_each_copy_counts_as_many_steps() -> None:
    old = random.Random(6).randbytes(MAX_BYTES)
    new = bytearray(old)
    new[::40] = bytes(len(new[::40]))
    delta = fossil_delta.create(old, bytes(new))
    assert delta is not None
    assert delta.count(b"@") < 2 * fossil_delta.MAX_STEPS / fossil_delta.COPY_STEPS
    assert fossil_delta.apply(old, delta, LIMIT) == new


def test_a_delta_of_another_text_is_invalid() -> None:
    assert DELTA
    with pytest.raises(InvalidDelta, match="belongs to another text"):
        fossil_delta.apply(b"A text that is long enough, here", DELTA, 100)

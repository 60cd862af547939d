"""Tags are a small map of strings."""

from __future__ import annotations

import pytest

from gateway.core import tags
from gateway.core.json_text import Json


def test_strings_are_tags() -> None:
    assert tags.check({"symbol": "BTC", "empty": ""}) == {"symbol": "BTC", "empty": ""}
    assert tags.check({}) == {}


def test_other_extras_are_tags_of_protocols_without_them() -> None:
    extras = b'{"action":"a","priority":1.5,"tags":{"action":"b","symbol":"BTC"}}'
    assert tags.of_extras(extras) == {"action": "a", "priority": "1.5", "symbol": "BTC"}
    assert tags.of_extras(b'{"tags":7}') == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["a"], "tags must be an object of strings"),
        ({str(number): "" for number in range(17)}, "17 tags exceed the limit of 16"),
        ({"": "a"}, "the name of a tag must be 1 to 200 characters"),
        ({"n" * 201: "a"}, "the name of a tag must be 1 to 200 characters"),
        ({"price": 12}, "the tag 'price' must be a string of at most 200 characters, not 12"),
        ({"price": "1" * 201}, "must be a string of at most 200 characters"),
    ],
)
def test_others_are_refused(value: Json, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tags.check(value)

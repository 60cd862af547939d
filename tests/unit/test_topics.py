"""Topic names, and who may hear and say what."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import topics
from gateway.topics import Need

PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:.-/"


@settings(deadline=None)
@given(st.text(PLAIN, min_size=1, max_size=200))
def test_any_name_of_the_allowed_characters_is_a_topic(name: str) -> None:
    assert topics.is_topic(name)


@settings(deadline=None, max_examples=300)
@given(st.text(PLAIN, max_size=6), st.characters(exclude_characters=PLAIN), st.text(PLAIN, max_size=6))
def test_one_other_character_anywhere_makes_it_none(before: str, other: str, after: str) -> None:
    assert not topics.is_topic(before + other + after)


@pytest.mark.parametrize("name", ["", "a" * 201, "a\n", "\na", "a b", "{a}", "a*", "é", "\u0661", "a\0", "a\ud800"])
def test_these_are_no_topics(name: str) -> None:
    assert not topics.is_topic(name)


@pytest.mark.parametrize("name", [None, 1, 1.5, True, b"contest", ["contest"], {"contest": 1}])
def test_what_is_no_string_is_no_topic(name: object) -> None:
    assert not topics.is_topic(name)


def test_a_name_has_at_most_200_characters() -> None:
    assert topics.MAX_TOPIC_LENGTH == 200
    assert topics.is_topic("a" * 200)


@pytest.mark.parametrize(
    ("topic", "to_hear", "to_say"),
    [
        ("contest", Need.ANYONE, Need.USER),
        ("token:price:ABC", Need.ANYONE, Need.USER),
        ("Portfolio", Need.ANYONE, Need.USER),
        ("portfolio", Need.USER, Need.USER),
        ("user", Need.USER, Need.USER),
        ("wallet", Need.USER, Need.USER),
        ("skyduel", Need.USER, Need.USER),
        ("admin", Need.ADMIN, Need.ADMIN),
        ("system", Need.ANYONE, Need.NOBODY),
    ],
)
def test_who_may_hear_and_say_what(topic: str, to_hear: Need, to_say: Need) -> None:
    assert (topics.to_subscribe(topic), topics.to_publish(topic)) == (to_hear, to_say)


@settings(deadline=None)
@given(st.from_regex(re.compile(r"[A-Za-z0-9_:.\-/]{1,20}"), fullmatch=True))
def test_no_topic_is_easier_to_say_something_on_than_to_hear(topic: str) -> None:
    order = [Need.ANYONE, Need.USER, Need.ADMIN, Need.NOBODY]
    assert order.index(topics.to_publish(topic)) >= order.index(topics.to_subscribe(topic))

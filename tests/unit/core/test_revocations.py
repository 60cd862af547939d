"""The list of revoked tokens gives the same result for any order and repetition of its entries."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.revocations import Revocation, Revocations, name_of, parse

ids = st.sampled_from(["a", "b", "c"])
times = st.floats(1, 100)
entries = st.one_of(
    st.builds(Revocation, st.just("token"), ids, times), st.builds(Revocation, st.just("user"), ids, times, times)
)


def test_a_token_is_known_by_its_id() -> None:
    book = Revocations()
    assert book.add([Revocation("token", "t1", 10)])
    assert book.is_revoked("t1", "ann", 5)
    assert not book.is_revoked("t2", "ann", 5)
    assert not book.is_revoked(None, "t1", 5)


def test_of_a_user_the_tokens_up_to_a_moment_are_refused() -> None:
    book = Revocations()
    book.add([Revocation("user", "ann", 100, 50)])
    assert book.is_revoked(None, "ann", 50) and book.is_revoked("t", "ann", 1)
    assert book.is_revoked(None, "ann", None), "one that does not say when it was issued is an old one"
    assert book.is_revoked(None, "ann", math.nan)
    assert not book.is_revoked(None, "ann", 50.1)
    assert not book.is_revoked(None, "bob", 1)
    assert not book.is_revoked("ann", None, None)


def test_a_token_of_a_clock_that_is_ahead_counts_as_older_than_the_revocation_of_its_user() -> None:
    book = Revocations()
    book.add([Revocation("user", "ann", 100, 50)])
    assert book.is_revoked(None, "ann", 60.1, latest=60), "it may have been issued before 50"
    assert not book.is_revoked(None, "ann", 60, latest=60)
    assert not book.is_revoked(None, "bob", 99, latest=60), "bob is not revoked"
    assert book.extend("ann", 60.1) and not book.extend("ann", 60.1) and not book.extend("bob", 1)
    assert book.is_revoked(None, "ann", 60.1, latest=90) and not book.is_revoked(None, "ann", 60.2, latest=90)
    assert list(book) == [Revocation("user", "ann", 100, 60.1)]


@pytest.mark.parametrize("length", [201, 5000])
def test_a_long_id_is_revoked_by_its_digest(length: int) -> None:
    assert name_of("j" * 200) == "j" * 200
    name = name_of("j" * length)
    assert name.startswith("sha256:") and len(name) == 71 and name != name_of("k" * length)
    assert name_of(name) == name, "as it is listed, it can be given back"


def test_what_would_have_expired_is_forgotten() -> None:
    book = Revocations()
    book.add([Revocation("token", "t1", 10), Revocation("token", "t2", 11)])
    book.expire(10)
    assert [one.name for one in book] == ["t2"]


def test_only_news_is_news() -> None:
    book = Revocations()
    assert book.add([Revocation("user", "ann", 10, 5)])
    assert not book.add([Revocation("user", "ann", 9, 4)])
    assert book.add([Revocation("user", "ann", 9, 6)])
    assert list(book) == [Revocation("user", "ann", 10, 6)]


@settings(deadline=None)
@given(st.lists(entries, max_size=12), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(given_: list[Revocation], random: st.DataObject) -> None:
    one, other = Revocations(), Revocations()
    one.add(given_)
    shuffled = [*given_, *given_]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for entry in shuffled:
        other.add([entry])
    assert set(one) == set(other)


@given(entries)
def test_one_is_read_as_it_was_written(entry: Revocation) -> None:
    assert parse(entry.as_dict()) == entry


@pytest.mark.parametrize(
    "change",
    [{"kind": "role"}, {"name": ""}, {"name": "x" * 201}, {"name": 5}, {"until": "x"}, {"until": -1}, {"before": 1e13},
     {"until": math.nan}, {"before": None}],
)  # fmt: skip
def test_what_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a revocation has"):
        parse(Revocation("token", "t1", 10).as_dict() | change)

"""gateway.roster: people come with their first client and go a grace after their last."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.roster import Attendee, PresenceChanges, Roster

GRACE = 5.0
ANN = Attendee("a.1.1", "ann")
ANN_AGAIN = Attendee("b.1.1", "ann")
BOB = Attendee("a.1.2", "bob")
NOBODY = Attendee("a.1.3", None)


def joined(*attendees: Attendee) -> Roster:
    roster = Roster(GRACE)
    for attendee in attendees:
        roster.join(attendee)
    roster.changes(0)
    return roster


def test_who_comes_is_news_once() -> None:
    roster = Roster(GRACE)
    roster.join(ANN)
    roster.join(ANN)
    assert roster.changes(0) == PresenceChanges(joined=[ANN])
    assert not roster.changes(0)
    assert roster.people() == [ANN]


def test_a_second_client_of_a_user_is_no_news() -> None:
    roster = joined(ANN)
    roster.join(ANN_AGAIN)
    assert not roster.changes(0)
    assert len(roster) == 1
    roster.leave(ANN.client_id, 0)
    assert not roster.held
    assert roster.people() == [ANN_AGAIN]


def test_a_leave_is_shown_after_the_grace_and_not_before() -> None:
    roster = joined(ANN, BOB)
    roster.leave(ANN.client_id, 10)
    assert roster.held
    assert not roster.changes(10 + GRACE - 0.1)
    assert len(roster) == 2, "who is held is still here"
    assert roster.changes(10 + GRACE) == PresenceChanges(left=[ANN])
    assert roster.people() == [BOB]
    assert not roster.held


def test_a_page_loaded_anew_is_neither_coming_nor_going() -> None:
    roster = joined(ANN)
    roster.leave(ANN.client_id, 10)
    roster.join(ANN_AGAIN)
    assert not roster.changes(10 + 2 * GRACE)
    assert roster.people() == [ANN_AGAIN]


def test_who_died_with_a_node_is_shown_at_once() -> None:
    roster = joined(ANN)
    roster.leave(ANN.client_id, 10, dead=True)
    assert roster.changes(10) == PresenceChanges(left=[ANN])


def test_anonymous_clients_are_people_each() -> None:
    roster = joined(NOBODY, Attendee("a.1.4", None))
    assert len(roster) == 2


def test_a_user_named_like_a_client_is_somebody_else() -> None:
    roster = joined(NOBODY, Attendee("a.1.9", NOBODY.client_id))
    assert len(roster) == 2


def test_a_client_with_another_user_is_another_person_at_once() -> None:
    roster = joined(NOBODY, BOB)
    roster.join(NOBODY._replace(user="ann"))
    assert roster.changes(10) == PresenceChanges(joined=[NOBODY._replace(user="ann")], left=[NOBODY])
    roster.join(NOBODY._replace(user="bob"))
    assert roster.changes(10) == PresenceChanges(left=[NOBODY._replace(user="ann")])
    assert len(roster) == 1
    roster.leave(BOB.client_id, 10)
    assert roster.people() == [NOBODY._replace(user="bob")]


def test_who_came_and_went_within_a_batch_was_never_here() -> None:
    roster = Roster(0)
    roster.join(ANN)
    roster.leave(ANN.client_id, 0)
    assert not roster.changes(0)
    assert len(roster) == 0


def test_who_was_here_before_us_is_no_news() -> None:
    roster = Roster(GRACE)
    roster.prime([ANN, BOB])
    assert not roster.changes(0)
    assert len(roster) == 2


def test_what_was_missed_is_made_good() -> None:
    roster = joined(ANN, BOB)
    roster.reconcile([BOB, NOBODY], now=10)
    assert roster.changes(10) == PresenceChanges(joined=[NOBODY])
    assert roster.changes(10 + GRACE) == PresenceChanges(left=[ANN])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.booleans(), st.sampled_from([None, "ann", "bob"]), st.floats(0, 3)),
        max_size=60,
    )
)
def test_the_news_add_up_to_who_is_here(steps: list[tuple[int, bool, str | None, float]]) -> None:
    roster = Roster(GRACE)
    users: dict[int, str | None] = {}
    here: set[str] = set()
    now = 0.0
    clients: set[str] = set()
    for number, comes, user, later in steps:
        now += later
        attendee = Attendee(f"n.1.{number}", users.setdefault(number, user))
        if comes:
            roster.join(attendee)
            clients.add(attendee.client_id)
        else:
            roster.leave(attendee.client_id, now)
            clients.discard(attendee.client_id)
        news = roster.changes(now)
        came, went = {a.person for a in news.joined}, {a.person for a in news.left}
        assert not came & here
        assert went <= here
        here = (here | came) - went
        assert {a.person for a in roster.people()} == here
    news = roster.changes(now + 2 * GRACE)
    here -= {a.person for a in news.left}
    assert here == {Attendee(c, users[int(c[4:])]).person for c in clients}

"""gateway.core.presence_set: a user joins with the first client and leaves a grace period after the last."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.presence_set import ClientChanges, Member, PresenceChanges, PresenceSet

GRACE = 5.0
ANN = Member("a.1.1", "ann")
ANN_AGAIN = Member("b.1.1", "ann")
BOB = Member("a.1.2", "bob")
ANONYMOUS = Member("a.1.3", None)


def joined(*members: Member) -> PresenceSet:
    presence_set = PresenceSet(GRACE)
    for member in members:
        presence_set.join(member)
    presence_set.changes(0)
    return presence_set


def test_a_join_is_published_once() -> None:
    presence_set = PresenceSet(GRACE)
    presence_set.join(ANN)
    presence_set.join(ANN)
    assert presence_set.changes(0) == PresenceChanges(joined=[ANN])
    assert not presence_set.changes(0)
    assert presence_set.members() == [ANN]


def test_a_second_client_of_a_user_is_no_news() -> None:
    presence_set = joined(ANN)
    presence_set.join(ANN_AGAIN)
    assert not presence_set.changes(0)
    assert len(presence_set) == 1
    presence_set.leave(ANN.client_id, 0)
    assert not presence_set.held
    assert presence_set.members() == [ANN_AGAIN]


def test_a_leave_is_shown_after_the_grace_and_not_before() -> None:
    presence_set = joined(ANN, BOB)
    presence_set.leave(ANN.client_id, 10)
    assert presence_set.held
    assert not presence_set.changes(10 + GRACE - 0.1)
    assert len(presence_set) == 2, "who is held is still here"
    assert presence_set.changes(10 + GRACE) == PresenceChanges(left=[ANN])
    assert presence_set.members() == [BOB]
    assert not presence_set.held


def test_a_page_loaded_anew_is_neither_coming_nor_going() -> None:
    presence_set = joined(ANN)
    presence_set.leave(ANN.client_id, 10)
    presence_set.join(ANN_AGAIN)
    assert not presence_set.changes(10 + 2 * GRACE)
    assert presence_set.members() == [ANN_AGAIN]


def test_a_client_of_a_dead_node_leaves_at_once() -> None:
    presence_set = joined(ANN)
    presence_set.leave(ANN.client_id, 10, dead=True)
    assert presence_set.changes(10) == PresenceChanges(left=[ANN])


def test_anonymous_clients_are_people_each() -> None:
    presence_set = joined(ANONYMOUS, Member("a.1.4", None))
    assert len(presence_set) == 2


def test_a_user_named_like_a_client_is_somebody_else() -> None:
    presence_set = joined(ANONYMOUS, Member("a.1.9", ANONYMOUS.client_id))
    assert len(presence_set) == 2


def test_a_client_with_another_user_is_another_person_at_once() -> None:
    presence_set = joined(ANONYMOUS, BOB)
    presence_set.join(ANONYMOUS._replace(user="ann"))
    assert presence_set.changes(10) == PresenceChanges(joined=[ANONYMOUS._replace(user="ann")], left=[ANONYMOUS])
    presence_set.join(ANONYMOUS._replace(user="bob"))
    assert presence_set.changes(10) == PresenceChanges(left=[ANONYMOUS._replace(user="ann")])
    assert len(presence_set) == 1
    presence_set.leave(BOB.client_id, 10)
    assert presence_set.members() == [ANONYMOUS._replace(user="bob")]


def test_a_join_and_leave_within_a_batch_publishes_nothing() -> None:
    presence_set = PresenceSet(0)
    presence_set.join(ANN)
    presence_set.leave(ANN.client_id, 0)
    assert not presence_set.changes(0)
    assert len(presence_set) == 0


def test_members_from_before_are_not_published() -> None:
    presence_set = PresenceSet(GRACE)
    presence_set.prime([ANN, BOB])
    assert not presence_set.changes(0)
    assert len(presence_set) == 2


def test_what_was_missed_is_made_good() -> None:
    presence_set = joined(ANN, BOB)
    presence_set.reconcile([BOB, ANONYMOUS], now=10)
    assert presence_set.changes(10) == PresenceChanges(joined=[ANONYMOUS])
    assert presence_set.changes(10 + GRACE) == PresenceChanges(left=[ANN])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.booleans(), st.sampled_from([None, "ann", "bob"]), st.floats(0, 3)),
        max_size=60,
    )
)
def test_the_news_add_up_to_who_is_here(steps: list[tuple[int, bool, str | None, float]]) -> None:
    presence_set = PresenceSet(GRACE)
    users: dict[int, str | None] = {}
    here: set[str] = set()
    now = 0.0
    clients: set[str] = set()
    for number, comes, user, later in steps:
        now += later
        member = Member(f"n.1.{number}", users.setdefault(number, user))
        if comes:
            presence_set.join(member)
            clients.add(member.client_id)
        else:
            presence_set.leave(member.client_id, now)
            clients.discard(member.client_id)
        news = presence_set.changes(now)
        came, went = {a.person for a in news.joined}, {a.person for a in news.left}
        assert not came & here
        assert went <= here
        here = (here | came) - went
        assert {a.person for a in presence_set.members()} == here
    news = presence_set.changes(now + 2 * GRACE)
    here -= {a.person for a in news.left}
    assert here == {Member(c, users[int(c[4:])]).person for c in clients}


# ---- each client

ANN_INFO = ANN._replace(info=b'{"name":"Ann"}')


def test_each_client_joins_and_leaves_at_once_also_while_its_person_stays() -> None:
    presence_set = joined(ANN)
    presence_set.client_changes()
    presence_set.join(ANN_AGAIN)
    assert not presence_set.changes(0)
    assert presence_set.client_changes() == ClientChanges(joined=[ANN_AGAIN])
    presence_set.leave(ANN.client_id, 10)
    assert presence_set.client_changes() == ClientChanges(left=[ANN])
    presence_set.leave(ANN_AGAIN.client_id, 10)
    assert not presence_set.changes(10)  # the grace period
    assert presence_set.client_changes() == ClientChanges(left=[ANN_AGAIN])
    assert presence_set.client_members() == []
    assert len(presence_set) == 1


def test_clients_before_us_and_those_within_a_batch_are_not_reported() -> None:
    presence_set = PresenceSet(GRACE)
    presence_set.prime([ANN])
    presence_set.join(BOB)
    presence_set.leave(BOB.client_id, 0)
    assert not presence_set.client_changes()
    assert presence_set.client_members() == [ANN]


def test_a_client_with_another_user_left_and_joined() -> None:
    presence_set = joined(ANONYMOUS)
    presence_set.client_changes()
    named = ANONYMOUS._replace(user="ann")
    presence_set.join(named)
    assert presence_set.client_changes() == ClientChanges(joined=[named], left=[ANONYMOUS])


def test_a_new_info_replaces_the_old_one_silently() -> None:
    presence_set = joined(ANN)
    presence_set.client_changes()
    presence_set.join(ANN_INFO)
    assert not presence_set.changes(0) and not presence_set.client_changes()
    assert presence_set.members() == presence_set.client_members() == [ANN_INFO]


def test_a_copy_with_more_clients_leaves_the_set_as_it_is() -> None:
    presence_set = PresenceSet(5)
    ann, again, bob = Member("1", "ann"), Member("2", "ann"), Member("3", "bob")
    presence_set.join(ann)
    assert presence_set.including([ann]) is presence_set
    copy = presence_set.including([ann, again, bob])
    assert copy.client_members() == [ann, again, bob] and copy.members() == [ann, bob]
    assert presence_set.client_members() == presence_set.members() == [ann]

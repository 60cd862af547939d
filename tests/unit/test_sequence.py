"""gateway.core.sequence: in order, without gaps, without duplicates, whatever pub/sub and Redis lose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.position import Position, is_unborn, same_beginning, unborn
from gateway.core.sequence import MAX_HELD, Entry, FillResult, Page, Sequence

LIFE, OTHER_LIFE = "0123456789ab", "ba9876543210"
UNBORN = unborn(LIFE, 500_000)


def entry(offset: int, body: str = "", mark: int | None = None, previous: int | None = None) -> Entry:
    """The message at `offset`; the marks are the offsets times ten, unless they are given."""
    mark = offset * 10 if mark is None else mark
    return Entry(offset, f"{body}{offset}".encode(), None, mark, (offset - 1) * 10 if previous is None else previous)


def lost(offset: int, after: int) -> list[Entry]:
    """What the offsets behind `after` up to `offset` were given to, once Redis had lost all behind `after`."""
    marks = [after * 10, *(at * 10 + 1000 for at in range(after + 1, offset + 1))]
    return [
        entry(after + 1 + n, "other", mark, previous) for n, (previous, mark) in enumerate(itertools.pairwise(marks))
    ]


def page(top: int, *, first: int = 1, epoch: str = "e", **more: object) -> Page:
    entries = [entry(offset) for offset in range(first, top + 1)]
    return Page(epoch, top, entries, mark=top * 10, **more)  # type: ignore[arg-type]


def known(top: int = 3, keep: int = 10) -> Sequence:
    """A sequence that knows its place."""
    sequence = Sequence(keep)
    sequence.begin_read()
    sequence.fill(page(top))
    return sequence


def repair(sequence: Sequence, answer: Page) -> FillResult:
    sequence.begin_read()
    return sequence.fill(answer)


def at(offset: int, epoch: str = "e") -> Position:
    return Position(epoch, offset, offset * 10)


def test_a_new_sequence_asks_for_the_newest() -> None:
    sequence = Sequence(10)
    assert sequence.wanted
    assert sequence.begin_read() is None
    assert sequence.fill(page(3)) == FillResult()
    assert (sequence.position, sequence.wanted) == (at(3), False)
    assert sequence.newest == b"3"


def test_the_next_message_is_delivered_at_once() -> None:
    sequence = known(3)
    assert sequence.receive("e", entry(4))
    assert sequence.position == at(4)
    assert not sequence.wanted


def test_a_jump_is_held_and_filled_in_order() -> None:
    sequence = known(3)
    assert not sequence.receive("e", entry(6))
    assert sequence.wanted
    assert sequence.begin_read() == 3
    settled = sequence.fill(page(6, first=3))
    assert settled == FillResult([entry(4), entry(5), entry(6)])
    assert not sequence.wanted


def test_the_next_offset_of_another_history_is_not_the_next_message() -> None:
    """Redis lost 4, and as many messages followed as were lost: the numbers fit, the marks do not."""
    sequence = known(4)
    assert not sequence.receive("e", lost(5, after=3)[1])
    assert sequence.wanted
    newest = Page("e", 5, [*page(3).entries, *lost(5, after=3)], mark=1050)
    assert parted(sequence, Page("e", 5, lost(5, after=3), mark=1050), newest) == FillResult(
        lost(5, after=3), gap=True, went_back=True
    )


def test_what_comes_while_the_stream_is_read_follows_it() -> None:
    sequence = known(3)
    sequence.receive("e", entry(5))
    sequence.begin_read()
    sequence.receive("e", entry(6))
    assert sequence.fill(page(5, first=3)).entries == [entry(4), entry(5), entry(6)]
    assert not sequence.wanted


def test_what_goes_beyond_the_answer_is_asked_for_again() -> None:
    sequence = known(3)
    sequence.receive("e", entry(5))
    sequence.begin_read()
    sequence.receive("e", entry(8))
    assert sequence.fill(page(5, first=3)).entries == [entry(4), entry(5)]
    assert sequence.wanted
    assert repair(sequence, page(8, first=5)).entries == [entry(6), entry(7), entry(8)]
    assert not sequence.wanted


def test_a_duplicate_is_dropped_after_a_look() -> None:
    sequence = known(3)
    assert not sequence.receive("e", entry(3))
    assert repair(sequence, page(3, first=3)) == FillResult()
    assert not sequence.receive("e", entry(2))
    assert repair(sequence, page(3, first=3)) == FillResult()
    assert not sequence.wanted


def test_a_held_message_that_contradicts_the_page_is_a_gap() -> None:
    """It was published, and Redis has given its offset to another message since."""
    sequence = known(3)
    sequence.receive("e", entry(5, "lost", mark=55))
    settled = repair(sequence, page(5, first=3))
    assert settled == FillResult([entry(4), entry(5)], gap=True)
    assert not sequence.wanted


def test_a_late_message_from_before_the_opening_is_no_gap() -> None:
    """With one message kept, the page of the opening does not hold what pub/sub brings late."""
    sequence = Sequence(1)
    sequence.begin_read()
    sequence.fill(page(5, first=5))
    assert not sequence.receive("e", entry(4))
    assert repair(sequence, page(5, first=5)) == FillResult()


def test_a_stream_that_was_trimmed_gives_a_gap_and_what_is_left() -> None:
    sequence = known(3)
    sequence.mark_missed()
    settled = repair(sequence, page(9, first=7))
    assert settled == FillResult([entry(7), entry(8), entry(9)], gap=True)
    assert sequence.since(at(3)) is None


def test_a_stream_trimmed_exactly_up_to_our_place_continues_if_the_next_message_names_ours() -> None:
    sequence = known(3)
    sequence.mark_missed()
    assert repair(sequence, page(5, first=4)) == FillResult([entry(4), entry(5)])
    other = known(3)
    other.mark_missed()
    rest = lost(5, after=2)[1:]
    settled = parted(other, Page("e", 5, rest, mark=1050), Page("e", 5, rest, mark=1050))
    assert settled == FillResult(rest, gap=True, went_back=True)


def test_a_stream_without_messages_is_compared_by_its_top() -> None:
    sequence = known(3)
    sequence.mark_missed()
    assert repair(sequence, Page("e", 3, [], mark=30)) == FillResult()
    sequence.mark_missed()
    empty = Page("e", 3, [], mark=1030)
    assert parted(sequence, empty, empty) == FillResult(gap=True, went_back=True)
    assert sequence.since(at(3)) is None


def parted(sequence: Sequence, answer: Page, newest: Page) -> FillResult:
    """What becomes of an answer that does not continue from our place: the newest are read, and settle it."""
    assert repair(sequence, answer) == FillResult()
    assert sequence.wanted
    assert sequence.begin_read() is None
    return sequence.fill(newest)


def test_another_epoch_gives_a_gap_and_all_it_holds() -> None:
    sequence = known(3)
    news = lost(2, after=0)
    assert not sequence.receive("f", news[1])
    assert parted(sequence, Page("f", 2, [], mark=1020), Page("f", 2, news, mark=1020)) == FillResult(news, gap=True)
    assert sequence.position == Position("f", 2, 1020)
    assert not sequence.wanted


def test_a_stream_that_lost_its_tail_is_found_out() -> None:
    sequence = known(3)
    sequence.mark_missed()
    settled = parted(sequence, Page("e", 2, [], mark=20), page(2))
    assert settled == FillResult(gap=True, went_back=True)
    assert sequence.offset == 2


def test_what_was_said_after_the_tail_was_lost_is_news_though_its_numbers_were_had() -> None:
    sequence = known(9)
    sequence.mark_missed()
    news = lost(8, after=6)
    newest = Page("e", 8, [*page(6).entries, *news], mark=1080)
    assert parted(sequence, Page("e", 8, [], mark=1080), newest) == FillResult(news, gap=True, went_back=True)


def test_a_stream_that_another_node_has_renamed_gives_nothing_twice_and_tells_of_what_we_never_had() -> None:
    sequence = known(3)
    settled = repair(sequence, page(5, first=3, epoch="renewed"))
    assert settled.entries == [entry(4), entry(5)]
    assert settled.gap, "the other had had more than the stream has now: it is lost to our subscribers"
    assert not settled.went_back
    assert sequence.epoch == "renewed"


def test_one_that_went_back_and_was_renamed_by_another_gives_what_follows_what_is_common() -> None:
    sequence = known(9)
    news = lost(8, after=6)
    newest = Page("renewed", 8, [*page(6).entries, *news], mark=1080)
    assert parted(sequence, Page("renewed", 8, [], mark=1080), newest) == FillResult(news, gap=True)


def test_of_a_renamed_stream_with_nothing_in_common_what_is_older_than_our_memory_is_not_given_again() -> None:
    """All that we remember is lost with the tail, and the node that found out has renamed the stream."""
    sequence = Sequence(2)
    repair(sequence, page(9))
    news = lost(6, after=5)
    settled = parted(sequence, Page("renewed", 6, [], mark=1060), Page("renewed", 6, [entry(5), *news], mark=1060))
    assert settled == FillResult(news, gap=True)


def test_a_long_repair_goes_on_where_the_answer_ended() -> None:
    sequence = known(3)
    sequence.mark_missed()
    first = Page("e", 9, [entry(3), entry(4), entry(5)], more=True, mark=90)
    assert repair(sequence, first).entries == [entry(4), entry(5)]
    assert sequence.wanted
    assert sequence.begin_read() == 5
    assert sequence.position == at(5)


def test_an_entry_that_is_missing_within_the_page_is_a_gap() -> None:
    sequence = known(3)
    sequence.mark_missed()
    assert repair(sequence, Page("e", 6, [entry(3), entry(4), entry(6)], mark=60)).gap
    assert sequence.since(at(4)) is None
    assert sequence.since(at(5)) == [entry(6)]


def test_memory_serves_who_comes_back() -> None:
    sequence = known(3)
    sequence.receive("e", entry(4))
    assert sequence.since(at(4)) == []
    assert sequence.since(at(2)) == [entry(3), entry(4)]
    assert sequence.since(Position("e", 0, 0)) == [entry(1), entry(2), entry(3), entry(4)]
    assert sequence.since(at(5)) is None, "a place we have never been at"
    assert sequence.since(at(4, "f")) is None
    assert sequence.since(Position("e", 2)) == [entry(3), entry(4)], "a client that sends no mark"


def test_a_position_whose_mark_is_another_means_another_message() -> None:
    sequence = known(9, keep=3)
    for offset in (6, 7, 9):
        assert sequence.since(at(offset)) is not None
        assert sequence.since(Position("e", offset, offset * 10 + 1)) is None
    assert sequence.since(Position("e", 9, -1)) is None


def test_memory_ends_where_it_is_told_to() -> None:
    sequence = known(9, keep=3)
    assert sequence.since(at(6)) == [entry(7), entry(8), entry(9)]
    assert sequence.since(at(5)) is None


def test_deleted_messages_are_given_to_nobody() -> None:
    sequence = known(3)
    sequence.forget()
    assert sequence.since(at(2)) is None
    assert sequence.since(at(3)) == []
    assert sequence.since(Position("e", 3, 31)) is None
    assert sequence.newest is None


def test_the_last_value_serves_where_the_stream_has_no_message_any_more() -> None:
    sequence = Sequence(10)
    sequence.begin_read()
    sequence.fill(Page("e", 3, [], mark=30, last=b"3"))
    assert sequence.newest == b"3"
    assert sequence.receive("e", entry(4))
    assert sequence.newest == b"4"
    sequence.forget()
    assert sequence.newest is None


def test_messages_without_marks_are_compared_by_their_text() -> None:
    """Streams that 0.1.0 has written."""
    old = [Entry(offset, b"%d" % offset) for offset in range(1, 5)]
    sequence = Sequence(10)
    repair(sequence, Page("e", 3, old[:3]))
    sequence.mark_missed()
    assert repair(sequence, Page("e", 4, old[2:])) == FillResult([old[3]])
    assert sequence.receive("e", Entry(5, b"5", None, 50, 0))
    assert sequence.since(Position("e", 3, 0)) == [old[3], Entry(5, b"5", None, 50, 0)]


def test_a_live_message_without_a_mark_that_the_answer_brings_too_is_delivered_once() -> None:
    old = [Entry(offset, b"%d" % offset) for offset in range(1, 5)]
    for text, gap in ((b"4", False), (b"another 4", True)):
        sequence = Sequence(10)
        repair(sequence, Page("e", 3, old[:3]))
        sequence.mark_missed()
        assert not sequence.receive("e", Entry(4, text))
        sequence.begin_read()
        assert sequence.fill(Page("e", 4, old[2:])).gap is gap


def test_more_messages_than_are_held_during_a_read_make_it_read_again() -> None:
    for more in (0, 1):
        sequence = known(3)
        sequence.mark_missed()
        sequence.begin_read()
        for offset in range(4, 4 + MAX_HELD + more):
            assert not sequence.receive("e", entry(offset))
        sequence.fill(page(3 + MAX_HELD))
        assert (sequence.wanted, sequence.offset) == (bool(more), 3 + MAX_HELD)


# ---- without messages yet


def unborn_sequence(epoch: str = UNBORN) -> Sequence:
    sequence = Sequence(10)
    sequence.begin_read()
    sequence.fill(Page(epoch, 0, [], beginning=epoch))
    return sequence


def test_an_epoch_of_a_topic_without_messages_is_told_from_others() -> None:
    assert is_unborn(UNBORN)
    assert not any(map(is_unborn, ("", "e", "0123abcd", f"{UNBORN}x", "u1t1")))
    assert same_beginning(UNBORN, unborn(LIFE, 500_023))
    assert not same_beginning(UNBORN, unborn(LIFE, 500_024)), "longer than Redis keeps what it knew of the topic"
    assert not same_beginning(UNBORN, unborn(OTHER_LIFE, 500_000))
    assert not same_beginning("e", "e")


def test_the_first_message_continues_a_topic_without_messages() -> None:
    sequence = unborn_sequence()
    assert sequence.position == Position(UNBORN, 0, 0)
    assert sequence.since(Position(UNBORN, 0, 0)) == []
    assert sequence.receive("e", entry(1))
    assert sequence.receive("e", entry(2))
    assert sequence.since(Position(UNBORN, 0, 0)) == [entry(1), entry(2)]
    assert sequence.since(Position(unborn(OTHER_LIFE, 500_000), 0, 0)) is None


def test_the_second_message_does_not() -> None:
    sequence = unborn_sequence()
    assert not sequence.receive("e", entry(2))
    assert repair(sequence, page(2, beginning=UNBORN)) == FillResult([entry(1), entry(2)])


def test_a_topic_born_while_the_node_heard_nothing_is_whole_only_if_redis_lost_nothing() -> None:
    sequence = unborn_sequence()
    sequence.mark_missed()
    assert repair(sequence, page(2, beginning=unborn(LIFE, 500_001))) == FillResult([entry(1), entry(2)])
    for beginning in (unborn(OTHER_LIFE, 500_000), unborn(LIFE, 500_030), None):
        sequence = unborn_sequence()
        sequence.mark_missed()
        answer = page(2, beginning=beginning)
        assert parted(sequence, answer, answer) == FillResult([entry(1), entry(2)], gap=True)
        assert sequence.since(Position(UNBORN, 0, 0)) is None


def test_a_topic_without_messages_in_another_life_of_redis_may_have_lost_some() -> None:
    sequence = unborn_sequence()
    sequence.mark_missed()
    same = unborn(LIFE, 500_002)
    assert repair(sequence, Page(same, 0, [], beginning=same)) == FillResult()
    sequence.mark_missed()
    other = unborn(OTHER_LIFE, 500_002)
    answer = Page(other, 0, [], beginning=other)
    assert parted(sequence, answer, answer) == FillResult(gap=True)


def test_a_topic_that_redis_forgot_is_a_gap() -> None:
    sequence = known(3)
    sequence.mark_missed()
    nothing = Page(UNBORN, 0, [], beginning=UNBORN)
    assert parted(sequence, nothing, nothing) == FillResult(gap=True)
    assert sequence.since(at(3)) is None
    assert sequence.receive("f", entry(1))


def test_positions_given_out_while_a_topic_stays_without_messages_count_from_then() -> None:
    sequence = unborn_sequence()
    sequence.still_unborn(500_100)
    assert sequence.position == Position(unborn(LIFE, 500_100), 0, 0)
    assert sequence.since(Position(UNBORN, 0, 0)) is None
    born = known(3)
    born.still_unborn(500_100)
    assert born.position == at(3)


def test_a_position_from_before_a_message_without_a_number_cannot_be_recovered_from() -> None:
    sequence = known(3)
    assert sequence.delivered_unnumbered(), "the order is kept"
    assert sequence.since(at(3)) is None
    assert sequence.receive("e", entry(4))
    assert sequence.since(at(4)) == []
    assert sequence.since(at(3)) is None
    sequence.receive("e", entry(6))
    assert not sequence.delivered_unnumbered(), "it overtakes the one that is held"
    nothing_yet = unborn_sequence()
    nothing_yet.delivered_unnumbered()
    nothing_yet.receive("e", entry(1))
    assert nothing_yet.since(Position(UNBORN, 0, 0)) is None


# ---- whatever happens


class Store:
    """Redis, as far as one topic goes. It may lose the topic, or its tail, and other nodes may find that out."""

    def __init__(self, keep: int) -> None:
        self.entries: list[Entry] = []
        self.epoch = ""  # none: the topic has no meta
        self.top = self.mark = 0
        self.life = 0
        self.number = 0  # of all messages there ever were
        self.since_loss: list[int] = []
        self.vanished: set[int] = set()  # what Redis has lost
        self.history: dict[tuple[int, int], int] = {}  # (offset, mark) -> number, of all that was ever published
        self._keep = keep
        self._epochs = 0
        self._clock = 1000
        self._lost_tail = False

    def publish(self) -> tuple[str, Entry]:
        if not self.epoch:
            self._name()
        self._clock += 1
        self.number += 1
        self.since_loss.append(self.number)
        self.top, previous, self.mark = self.top + 1, self.mark, max(self._clock, self.mark + 1)
        made = Entry(self.top, b'{"n":%d}' % self.number, None, self.mark, previous)
        self.history[made.offset, made.mark] = self.number
        self.entries = [*self.entries, made][-self._keep :]
        return self.epoch, made

    def forget(self) -> None:
        """FLUSHALL, or a Redis without a file that starts again."""
        self.life += 1
        self.vanished |= set(self.since_loss) | {self.history[e.offset, e.mark] for e in self.entries}
        self.epoch, self.entries, self.top, self.mark, self.since_loss = "", [], 0, 0, []
        self._lost_tail = False

    def lose_tail(self) -> None:
        """A crash: the file lacks the last moments."""
        self.life += 1
        keep = len(self.entries) // 2
        if keep < len(self.entries):
            self.mark = self.entries[keep].previous
        self.vanished |= {self.history[e.offset, e.mark] for e in self.entries[keep:]}
        self.top -= len(self.entries) - keep
        self.entries = self.entries[:keep]
        self.since_loss = []
        self._lost_tail = bool(self.epoch)

    def trim(self) -> None:
        """The oldest are past their time."""
        self.entries = self.entries[1:]

    def found_out(self) -> None:
        """By another node."""
        if self._lost_tail:
            self.renew(self.epoch)

    def renew(self, broken: str) -> str | None:
        self._lost_tail = False
        if self.epoch == broken:
            self._name()
        return self.epoch or None

    def _name(self) -> None:
        self._epochs += 1
        self.epoch = f"e{self._epochs}"

    def read(self, first: int | None) -> Page:
        beginning = unborn(f"{self.life:012d}", 500_000)
        if not self.epoch:
            return Page(beginning, 0, [], beginning=beginning)
        entries = [e for e in self.entries if first is None or e.offset >= first]
        whole = bool(entries) and entries[0].offset == 1
        return Page(self.epoch, self.top, entries, mark=self.mark, beginning=beginning if whole else None)


class Player:
    """A node's sequence over a `Store`, and what its subscribers are sent."""

    def __init__(self, store: Store, keep: int) -> None:
        self.store = store
        self.sequence = Sequence(keep)
        self.answer: Page | None = None
        self.seen: list[int] = []
        self.gaps = 0
        self.settle(store.read(self.sequence.begin_read()))

    def hear(self, epoch: str, made: Entry) -> None:
        if self.sequence.receive(epoch, made):
            self.give([made])

    def ask(self) -> None:
        if self.answer is None and self.sequence.wanted:
            self.answer = self.store.read(self.sequence.begin_read())

    def fill(self) -> None:
        if self.answer is not None:
            answer, self.answer = self.answer, None
            self.settle(answer)

    def settle(self, answer: Page) -> None:
        settled = self.sequence.fill(answer)
        self.gaps += settled.gap
        self.give(settled.entries)
        if settled.went_back:
            self.sequence.mark_missed()
            renewed = self.store.renew(answer.epoch)
            if renewed is not None:
                self.sequence.rename(renewed)

    def give(self, entries: list[Entry]) -> None:
        self.seen += [self.store.history[e.offset, e.mark] for e in entries]

    def finish(self) -> None:
        self.fill()
        self.sequence.mark_missed()
        for _ in range(8):
            if self.sequence.wanted:
                self.settle(self.store.read(self.sequence.begin_read()))
        assert not self.sequence.wanted
        page = self.store.read(None)
        assert (self.sequence.epoch, self.sequence.offset, self.sequence.mark) == (page.epoch, page.top, page.mark)


STEPS = (
    "publish", "publish", "publish", "publish", "publish and lose", "late", "again", "ask", "fill", "doubt", "trim",
    "forget", "lose tail", "lose tail unnoticed", "replace tail", "found out", "note", "note",
)  # fmt: skip


@settings(deadline=None, max_examples=600)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=20, max_size=80), keep=st.integers(1, 40))
def test_whatever_is_lost_nothing_is_silent_nothing_is_twice_and_no_recovery_is_false(
    steps: list[str], keep: int
) -> None:
    store = Store(keep)
    player = Player(store, keep)
    late: list[tuple[str, Entry]] = []  # the channel is in order, so what is late is so for all that follows
    noted: list[tuple[Position, int]] = []  # given to clients, and how many messages there were by then

    def note() -> None:
        if not player.sequence.wanted and not late:
            noted.append((player.sequence.position, store.number))

    def deliver() -> Iterator[None]:
        while late:
            player.hear(*late.pop(0))
            yield

    for step in steps:
        match step:
            case "publish":
                late.append(store.publish())
                list(deliver())
            case "late":
                late.append(store.publish())
            case "publish and lose":
                store.publish()
                player.sequence.mark_missed()
            case "again" if store.entries:
                late.append((store.epoch, store.entries[-1]))
            case "doubt":
                player.sequence.mark_missed()
            case "trim":
                store.trim()
            case "forget" | "lose tail" | "lose tail unnoticed":
                late.clear()  # the connection is lost with the server
                store.forget() if step == "forget" else store.lose_tail()
                if step != "lose tail unnoticed":
                    player.sequence.mark_missed()
            case "replace tail":
                note()
                late.clear()
                top = store.top
                store.lose_tail()
                while store.top < top:
                    store.publish()
            case "found out":
                store.found_out()
            case "ask":
                player.ask()
            case "fill":
                player.fill()
            case "note":
                note()
    list(deliver())
    unaware = Player(store, keep)  # a node that opens the topic before any has found out what Redis has lost
    player.finish()
    seen, gaps = player.seen, player.gaps
    assert seen == sorted(set(seen)), "once, and in order"
    if not gaps:
        kept = {store.history[e.offset, e.mark] for e in store.entries}
        assert kept.intersection(store.since_loss) <= set(seen), "of what was published since the last loss"
        if seen:
            missing = set(range(seen[0], store.number + 1)) - set(seen)
            assert missing <= store.vanished, "whole, but for what Redis lost before anybody received it"
    # A client comes back to this node, and to others that open the topic.
    for sequence, found_out in ((player.sequence, seen), (Player(store, keep).sequence, seen), (unaware.sequence, [])):
        for position, number in noted:
            missed = sequence.since(position)
            if missed is not None:
                recovered = {store.history[e.offset, e.mark] for e in missed}
                missing = set(range(number + 1, store.number + 1)) - recovered
                assert missing <= store.vanished - set(found_out), position
                assert all(n > number for n in recovered), position

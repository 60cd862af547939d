"""gateway.core.stream_position: order, gaps and duplicates after any losses of pub/sub and Redis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.position import Position, is_unborn, same_unborn, unborn
from gateway.core.stream_position import MAX_HELD, FillResult, StreamEntry, StreamPage, StreamPosition

LIFE, OTHER_LIFE = "0123456789ab", "ba9876543210"
UNBORN = unborn(LIFE, 500_000)


def entry(offset: int, body: str = "", mark: int | None = None, previous: int | None = None) -> StreamEntry:
    """The message at `offset`; the marks are the offsets times ten, unless they are given."""
    mark = offset * 10 if mark is None else mark
    return StreamEntry(
        offset, f"{body}{offset}".encode(), None, mark, (offset - 1) * 10 if previous is None else previous
    )


def lost(offset: int, after: int) -> list[StreamEntry]:
    """What the offsets behind `after` up to `offset` were given to, once Redis had lost all behind `after`."""
    marks = [after * 10, *(at * 10 + 1000 for at in range(after + 1, offset + 1))]
    return [
        entry(after + 1 + n, "other", mark, previous) for n, (previous, mark) in enumerate(itertools.pairwise(marks))
    ]


def page(top: int, *, first: int = 1, epoch: str = "e", **more: object) -> StreamPage:
    entries = [entry(offset) for offset in range(first, top + 1)]
    return StreamPage(epoch, top, entries, mark=top * 10, **more)  # type: ignore[arg-type]


def known(top: int = 3, keep: int = 10) -> StreamPosition:
    """A sequence that knows its place."""
    stream_position = StreamPosition(keep)
    stream_position.begin_read()
    stream_position.end_read(page(top))
    return stream_position


def repair(stream_position: StreamPosition, answer: StreamPage) -> FillResult:
    stream_position.begin_read()
    return stream_position.end_read(answer)


def at(offset: int, epoch: str = "e") -> Position:
    return Position(epoch, offset, offset * 10)


def test_a_new_sequence_asks_for_the_newest() -> None:
    stream_position = StreamPosition(10)
    assert stream_position.wanted
    assert stream_position.begin_read() is None
    assert stream_position.end_read(page(3)) == FillResult()
    assert (stream_position.position, stream_position.wanted) == (at(3), False)
    assert stream_position.newest == b"3"


def test_the_next_message_is_delivered_at_once() -> None:
    stream_position = known(3)
    assert stream_position.message_received("e", entry(4))
    assert stream_position.position == at(4)
    assert not stream_position.wanted


def test_a_jump_is_held_and_filled_in_order() -> None:
    stream_position = known(3)
    assert not stream_position.message_received("e", entry(6))
    assert stream_position.wanted
    assert stream_position.begin_read() == 3
    settled = stream_position.end_read(page(6, first=3))
    assert settled == FillResult([entry(4), entry(5), entry(6)])
    assert not stream_position.wanted


def test_the_next_offset_of_another_history_is_not_the_next_message() -> None:
    """Redis lost 4, and as many messages followed as were lost: the numbers fit, the marks do not."""
    stream_position = known(4)
    assert not stream_position.message_received("e", lost(5, after=3)[1])
    assert stream_position.wanted
    newest = StreamPage("e", 5, [*page(3).entries, *lost(5, after=3)], mark=1050)
    assert parted(stream_position, StreamPage("e", 5, lost(5, after=3), mark=1050), newest) == FillResult(
        lost(5, after=3), gap=True, went_back=True
    )


def test_what_comes_while_the_stream_is_read_follows_it() -> None:
    stream_position = known(3)
    stream_position.message_received("e", entry(5))
    stream_position.begin_read()
    stream_position.message_received("e", entry(6))
    assert stream_position.end_read(page(5, first=3)).entries == [entry(4), entry(5), entry(6)]
    assert not stream_position.wanted


def test_what_goes_beyond_the_answer_is_asked_for_again() -> None:
    stream_position = known(3)
    stream_position.message_received("e", entry(5))
    stream_position.begin_read()
    stream_position.message_received("e", entry(8))
    assert stream_position.end_read(page(5, first=3)).entries == [entry(4), entry(5)]
    assert stream_position.wanted
    assert repair(stream_position, page(8, first=5)).entries == [entry(6), entry(7), entry(8)]
    assert not stream_position.wanted


def test_a_duplicate_is_dropped_after_a_look() -> None:
    stream_position = known(3)
    assert not stream_position.message_received("e", entry(3))
    assert repair(stream_position, page(3, first=3)) == FillResult()
    assert not stream_position.message_received("e", entry(2))
    assert repair(stream_position, page(3, first=3)) == FillResult()
    assert not stream_position.wanted


def test_a_held_message_that_contradicts_the_page_is_a_gap() -> None:
    """It was published, and Redis has given its offset to another message since."""
    stream_position = known(3)
    stream_position.message_received("e", entry(5, "lost", mark=55))
    settled = repair(stream_position, page(5, first=3))
    assert settled == FillResult([entry(4), entry(5)], gap=True)
    assert not stream_position.wanted


def test_a_late_message_from_before_the_opening_is_no_gap() -> None:
    """With one message kept, the page of the opening does not hold what pub/sub brings late."""
    stream_position = StreamPosition(1)
    stream_position.begin_read()
    stream_position.end_read(page(5, first=5))
    assert not stream_position.message_received("e", entry(4))
    assert repair(stream_position, page(5, first=5)) == FillResult()


def test_a_stream_that_was_trimmed_gives_a_gap_and_what_is_left() -> None:
    stream_position = known(3)
    stream_position.mark_missed()
    settled = repair(stream_position, page(9, first=7))
    assert settled == FillResult([entry(7), entry(8), entry(9)], gap=True)
    assert stream_position.since(at(3)) is None


def test_a_stream_trimmed_exactly_up_to_our_place_continues_if_the_next_message_names_ours() -> None:
    stream_position = known(3)
    stream_position.mark_missed()
    assert repair(stream_position, page(5, first=4)) == FillResult([entry(4), entry(5)])
    other = known(3)
    other.mark_missed()
    rest = lost(5, after=2)[1:]
    settled = parted(other, StreamPage("e", 5, rest, mark=1050), StreamPage("e", 5, rest, mark=1050))
    assert settled == FillResult(rest, gap=True, went_back=True)


def test_a_stream_without_messages_is_compared_by_its_top() -> None:
    stream_position = known(3)
    stream_position.mark_missed()
    assert repair(stream_position, StreamPage("e", 3, [], mark=30)) == FillResult()
    stream_position.mark_missed()
    empty = StreamPage("e", 3, [], mark=1030)
    assert parted(stream_position, empty, empty) == FillResult(gap=True, went_back=True)
    assert stream_position.since(at(3)) is None


def parted(stream_position: StreamPosition, answer: StreamPage, newest: StreamPage) -> FillResult:
    """What becomes of an answer that does not continue from our place: the newest are read, and settle it."""
    assert repair(stream_position, answer) == FillResult()
    assert stream_position.wanted
    assert stream_position.begin_read() is None
    return stream_position.end_read(newest)


def test_another_epoch_gives_a_gap_and_all_it_holds() -> None:
    stream_position = known(3)
    news = lost(2, after=0)
    assert not stream_position.message_received("f", news[1])
    assert parted(
        stream_position, StreamPage("f", 2, [], mark=1020), StreamPage("f", 2, news, mark=1020)
    ) == FillResult(news, gap=True)
    assert stream_position.position == Position("f", 2, 1020)
    assert not stream_position.wanted


def test_a_stream_that_lost_its_tail_is_found_out() -> None:
    stream_position = known(3)
    stream_position.mark_missed()
    settled = parted(stream_position, StreamPage("e", 2, [], mark=20), page(2))
    assert settled == FillResult(gap=True, went_back=True)
    assert stream_position.offset == 2


def test_messages_after_a_lost_tail_are_new_although_their_offsets_repeat() -> None:
    stream_position = known(9)
    stream_position.mark_missed()
    news = lost(8, after=6)
    newest = StreamPage("e", 8, [*page(6).entries, *news], mark=1080)
    assert parted(stream_position, StreamPage("e", 8, [], mark=1080), newest) == FillResult(
        news, gap=True, went_back=True
    )


def test_a_stream_that_another_node_has_renamed_gives_nothing_twice_and_tells_of_what_we_never_had() -> None:
    stream_position = known(3)
    settled = repair(stream_position, page(5, first=3, epoch="renewed"))
    assert settled.entries == [entry(4), entry(5)]
    assert settled.gap, "the other had had more than the stream has now: it is lost to our subscribers"
    assert not settled.went_back
    assert stream_position.epoch == "renewed"


def test_one_that_went_back_and_was_renamed_by_another_gives_what_follows_what_is_common() -> None:
    stream_position = known(9)
    news = lost(8, after=6)
    newest = StreamPage("renewed", 8, [*page(6).entries, *news], mark=1080)
    assert parted(stream_position, StreamPage("renewed", 8, [], mark=1080), newest) == FillResult(news, gap=True)


def test_of_a_renamed_stream_with_nothing_in_common_what_is_older_than_our_memory_is_not_given_again() -> None:
    """All that we remember is lost with the tail, and the node that found out has renamed the stream."""
    stream_position = StreamPosition(2)
    repair(stream_position, page(9))
    news = lost(6, after=5)
    settled = parted(
        stream_position, StreamPage("renewed", 6, [], mark=1060), StreamPage("renewed", 6, [entry(5), *news], mark=1060)
    )
    assert settled == FillResult(news, gap=True)


def test_a_long_repair_goes_on_where_the_answer_ended() -> None:
    stream_position = known(3)
    stream_position.mark_missed()
    first = StreamPage("e", 9, [entry(3), entry(4), entry(5)], more=True, mark=90)
    assert repair(stream_position, first).entries == [entry(4), entry(5)]
    assert stream_position.wanted
    assert stream_position.begin_read() == 5
    assert stream_position.position == at(5)


def test_an_entry_that_is_missing_within_the_page_is_a_gap() -> None:
    stream_position = known(3)
    stream_position.mark_missed()
    assert repair(stream_position, StreamPage("e", 6, [entry(3), entry(4), entry(6)], mark=60)).gap
    assert stream_position.since(at(4)) is None
    assert stream_position.since(at(5)) == [entry(6)]


def test_memory_serves_who_comes_back() -> None:
    stream_position = known(3)
    stream_position.message_received("e", entry(4))
    assert stream_position.since(at(4)) == []
    assert stream_position.since(at(2)) == [entry(3), entry(4)]
    assert stream_position.since(Position("e", 0, 0)) == [entry(1), entry(2), entry(3), entry(4)]
    assert stream_position.since(at(5)) is None, "a place we have never been at"
    assert stream_position.since(at(4, "f")) is None
    assert stream_position.since(Position("e", 2)) == [entry(3), entry(4)], "a client that sends no mark"


def test_a_position_whose_mark_is_another_means_another_message() -> None:
    stream_position = known(9, keep=3)
    for offset in (6, 7, 9):
        assert stream_position.since(at(offset)) is not None
        assert stream_position.since(Position("e", offset, offset * 10 + 1)) is None
    assert stream_position.since(Position("e", 9, -1)) is None


def test_recent_messages_stop_at_the_given_number() -> None:
    stream_position = known(9, keep=3)
    assert stream_position.since(at(6)) == [entry(7), entry(8), entry(9)]
    assert stream_position.since(at(5)) is None


def test_deleted_messages_are_never_delivered() -> None:
    stream_position = known(3)
    stream_position.forget_messages()
    assert stream_position.since(at(2)) is None
    assert stream_position.since(at(3)) == []
    assert stream_position.since(Position("e", 3, 31)) is None
    assert stream_position.newest is None


def test_the_last_value_serves_where_the_stream_has_no_message_any_more() -> None:
    stream_position = StreamPosition(10)
    stream_position.begin_read()
    stream_position.end_read(StreamPage("e", 3, [], mark=30, last=b"3"))
    assert stream_position.newest == b"3"
    assert stream_position.message_received("e", entry(4))
    assert stream_position.newest == b"4"
    stream_position.forget_messages()
    assert stream_position.newest is None


def test_messages_without_marks_are_compared_by_their_text() -> None:
    """Streams that 0.1.0 has written."""
    old = [StreamEntry(offset, b"%d" % offset) for offset in range(1, 5)]
    stream_position = StreamPosition(10)
    repair(stream_position, StreamPage("e", 3, old[:3]))
    stream_position.mark_missed()
    assert repair(stream_position, StreamPage("e", 4, old[2:])) == FillResult([old[3]])
    assert stream_position.message_received("e", StreamEntry(5, b"5", None, 50, 0))
    assert stream_position.since(Position("e", 3, 0)) == [old[3], StreamEntry(5, b"5", None, 50, 0)]


def test_a_live_message_without_a_mark_that_the_answer_brings_too_is_delivered_once() -> None:
    old = [StreamEntry(offset, b"%d" % offset) for offset in range(1, 5)]
    for text, gap in ((b"4", False), (b"another 4", True)):
        stream_position = StreamPosition(10)
        repair(stream_position, StreamPage("e", 3, old[:3]))
        stream_position.mark_missed()
        assert not stream_position.message_received("e", StreamEntry(4, text))
        stream_position.begin_read()
        assert stream_position.end_read(StreamPage("e", 4, old[2:])).gap is gap


def test_more_messages_than_are_held_during_a_read_make_it_read_again() -> None:
    for more in (0, 1):
        stream_position = known(3)
        stream_position.mark_missed()
        stream_position.begin_read()
        for offset in range(4, 4 + MAX_HELD + more):
            assert not stream_position.message_received("e", entry(offset))
        stream_position.end_read(page(3 + MAX_HELD))
        assert (stream_position.wanted, stream_position.offset) == (bool(more), 3 + MAX_HELD)


# ---- without messages yet


def unborn_sequence(epoch: str = UNBORN) -> StreamPosition:
    stream_position = StreamPosition(10)
    stream_position.begin_read()
    stream_position.end_read(StreamPage(epoch, 0, [], beginning=epoch))
    return stream_position


def test_the_epoch_of_a_topic_without_messages_is_distinguished() -> None:
    assert is_unborn(UNBORN)
    assert not any(map(is_unborn, ("", "e", "0123abcd", f"{UNBORN}x", "u1t1")))
    assert same_unborn(UNBORN, unborn(LIFE, 500_023))
    assert not same_unborn(UNBORN, unborn(LIFE, 500_024)), "longer than Redis keeps what it knew of the topic"
    assert not same_unborn(UNBORN, unborn(OTHER_LIFE, 500_000))
    assert not same_unborn("e", "e")


def test_the_first_message_continues_a_topic_without_messages() -> None:
    stream_position = unborn_sequence()
    assert stream_position.position == Position(UNBORN, 0, 0)
    assert stream_position.since(Position(UNBORN, 0, 0)) == []
    assert stream_position.message_received("e", entry(1))
    assert stream_position.message_received("e", entry(2))
    assert stream_position.since(Position(UNBORN, 0, 0)) == [entry(1), entry(2)]
    assert stream_position.since(Position(unborn(OTHER_LIFE, 500_000), 0, 0)) is None


def test_the_second_message_does_not() -> None:
    stream_position = unborn_sequence()
    assert not stream_position.message_received("e", entry(2))
    assert repair(stream_position, page(2, beginning=UNBORN)) == FillResult([entry(1), entry(2)])


def test_a_topic_created_during_an_outage_is_complete_only_if_redis_lost_nothing() -> None:
    stream_position = unborn_sequence()
    stream_position.mark_missed()
    assert repair(stream_position, page(2, beginning=unborn(LIFE, 500_001))) == FillResult([entry(1), entry(2)])
    for beginning in (unborn(OTHER_LIFE, 500_000), unborn(LIFE, 500_030), None):
        stream_position = unborn_sequence()
        stream_position.mark_missed()
        answer = page(2, beginning=beginning)
        assert parted(stream_position, answer, answer) == FillResult([entry(1), entry(2)], gap=True)
        assert stream_position.since(Position(UNBORN, 0, 0)) is None


def test_a_topic_without_messages_in_another_life_of_redis_may_have_lost_some() -> None:
    stream_position = unborn_sequence()
    stream_position.mark_missed()
    same = unborn(LIFE, 500_002)
    assert repair(stream_position, StreamPage(same, 0, [], beginning=same)) == FillResult()
    stream_position.mark_missed()
    other = unborn(OTHER_LIFE, 500_002)
    answer = StreamPage(other, 0, [], beginning=other)
    assert parted(stream_position, answer, answer) == FillResult(gap=True)


def test_a_topic_that_redis_forgot_is_a_gap() -> None:
    stream_position = known(3)
    stream_position.mark_missed()
    nothing = StreamPage(UNBORN, 0, [], beginning=UNBORN)
    assert parted(stream_position, nothing, nothing) == FillResult(gap=True)
    assert stream_position.since(at(3)) is None
    assert stream_position.message_received("f", entry(1))


def test_positions_given_out_while_a_topic_stays_without_messages_count_from_then() -> None:
    stream_position = unborn_sequence()
    stream_position.still_unborn(500_100)
    assert stream_position.position == Position(unborn(LIFE, 500_100), 0, 0)
    assert stream_position.since(Position(UNBORN, 0, 0)) is None
    born = known(3)
    born.still_unborn(500_100)
    assert born.position == at(3)


def test_a_position_from_before_a_message_without_a_number_cannot_be_recovered_from() -> None:
    stream_position = known(3)
    assert stream_position.delivered_unnumbered(), "the order is kept"
    assert stream_position.since(at(3)) is None
    assert stream_position.message_received("e", entry(4))
    assert stream_position.since(at(4)) == []
    assert stream_position.since(at(3)) is None
    stream_position.message_received("e", entry(6))
    assert not stream_position.delivered_unnumbered(), "it overtakes the one that is held"
    nothing_yet = unborn_sequence()
    nothing_yet.delivered_unnumbered()
    nothing_yet.message_received("e", entry(1))
    assert nothing_yet.since(Position(UNBORN, 0, 0)) is None


# ---- random histories


class Store:
    """Redis, as far as one topic goes. It may lose the topic, or its tail, and other nodes may find that out."""

    def __init__(self, keep: int) -> None:
        self.entries: list[StreamEntry] = []
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

    def publish(self) -> tuple[str, StreamEntry]:
        if not self.epoch:
            self._name()
        self._clock += 1
        self.number += 1
        self.since_loss.append(self.number)
        self.top, previous, self.mark = self.top + 1, self.mark, max(self._clock, self.mark + 1)
        made = StreamEntry(self.top, b'{"n":%d}' % self.number, None, self.mark, previous)
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

    def read(self, first: int | None) -> StreamPage:
        beginning = unborn(f"{self.life:012d}", 500_000)
        if not self.epoch:
            return StreamPage(beginning, 0, [], beginning=beginning)
        entries = [e for e in self.entries if first is None or e.offset >= first]
        whole = bool(entries) and entries[0].offset == 1
        return StreamPage(self.epoch, self.top, entries, mark=self.mark, beginning=beginning if whole else None)


class Player:
    """A node's sequence over a `Store`, and what its subscribers are sent."""

    def __init__(self, store: Store, keep: int) -> None:
        self.store = store
        self.stream_position = StreamPosition(keep)
        self.answer: StreamPage | None = None
        self.seen: list[int] = []
        self.gaps = 0
        self.settle(store.read(self.stream_position.begin_read()))

    def hear(self, epoch: str, made: StreamEntry) -> None:
        if self.stream_position.message_received(epoch, made):
            self.give([made])

    def ask(self) -> None:
        if self.answer is None and self.stream_position.wanted:
            self.answer = self.store.read(self.stream_position.begin_read())

    def fill(self) -> None:
        if self.answer is not None:
            answer, self.answer = self.answer, None
            self.settle(answer)

    def settle(self, answer: StreamPage) -> None:
        settled = self.stream_position.end_read(answer)
        self.gaps += settled.gap
        self.give(settled.entries)
        if settled.went_back:
            self.stream_position.mark_missed()
            renewed = self.store.renew(answer.epoch)
            if renewed is not None:
                self.stream_position.set_epoch(renewed)

    def give(self, entries: list[StreamEntry]) -> None:
        self.seen += [self.store.history[e.offset, e.mark] for e in entries]

    def finish(self) -> None:
        self.fill()
        self.stream_position.mark_missed()
        for _ in range(8):
            if self.stream_position.wanted:
                self.settle(self.store.read(self.stream_position.begin_read()))
        assert not self.stream_position.wanted
        page = self.store.read(None)
        assert (self.stream_position.epoch, self.stream_position.offset, self.stream_position.mark) == (
            page.epoch,
            page.top,
            page.mark,
        )


STEPS = (
    "publish", "publish", "publish", "publish", "publish and lose", "late", "again", "ask", "fill", "doubt", "trim",
    "forget", "lose tail", "lose tail unnoticed", "replace tail", "found out", "note", "note",
)  # fmt: skip


@settings(deadline=None, max_examples=600)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=20, max_size=80), keep=st.integers(1, 40))
def test_every_loss_is_reported_without_duplicates_or_false_recoveries(steps: list[str], keep: int) -> None:
    store = Store(keep)
    player = Player(store, keep)
    late: list[tuple[str, StreamEntry]] = []  # the channel is in order, so what is late is so for all that follows
    noted: list[tuple[Position, int]] = []  # given to clients, and how many messages there were by then

    def note() -> None:
        if not player.stream_position.wanted and not late:
            noted.append((player.stream_position.position, store.number))

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
                player.stream_position.mark_missed()
            case "again" if store.entries:
                late.append((store.epoch, store.entries[-1]))
            case "doubt":
                player.stream_position.mark_missed()
            case "trim":
                store.trim()
            case "forget" | "lose tail" | "lose tail unnoticed":
                late.clear()  # the connection is lost with the server
                store.forget() if step == "forget" else store.lose_tail()
                if step != "lose tail unnoticed":
                    player.stream_position.mark_missed()
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
    for stream_position, found_out in (
        (player.stream_position, seen),
        (Player(store, keep).stream_position, seen),
        (unaware.stream_position, []),
    ):
        for position, number in noted:
            missed = stream_position.since(position)
            if missed is not None:
                recovered = {store.history[e.offset, e.mark] for e in missed}
                missing = set(range(number + 1, store.number + 1)) - recovered
                assert missing <= store.vanished - set(found_out), position
                assert all(n > number for n in recovered), position

"""gateway.sequence: in order, without gaps, without doubles, whatever pub/sub loses."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.sequence import Entry, Page, Sequence, Settled


def entry(offset: int, body: str = "") -> Entry:
    return Entry(offset, f"{body}{offset}".encode())


def said(offset: int, epoch: str) -> Entry:
    """A message as it stands in a stream: it names its epoch."""
    return Entry(offset, f'{{"offset":{offset},"epoch":"{epoch}"}}'.encode())


def page(top: int, *, first: int = 1, epoch: str = "e", body: str = "") -> Page:
    return Page(epoch, top, [entry(offset, body) for offset in range(first, top + 1)])


def known(top: int = 3, keep: int = 10) -> Sequence:
    """A sequence that knows its place."""
    sequence = Sequence(keep)
    sequence.ask()
    sequence.fill(page(top))
    return sequence


def repair(sequence: Sequence, answer: Page) -> Settled:
    sequence.ask()
    return sequence.fill(answer)


def test_a_new_sequence_asks_for_the_newest() -> None:
    sequence = Sequence(10)
    assert sequence.wanted
    assert sequence.ask() is None
    settled = sequence.fill(page(3))
    assert settled == Settled()
    assert (sequence.epoch, sequence.offset, sequence.wanted) == ("e", 3, False)
    assert sequence.newest == entry(3)


def test_the_next_message_is_delivered_at_once() -> None:
    sequence = known(3)
    assert sequence.receive("e", entry(4))
    assert sequence.offset == 4
    assert not sequence.wanted


def test_a_jump_is_held_and_filled_in_order() -> None:
    sequence = known(3)
    assert not sequence.receive("e", entry(6))
    assert sequence.wanted
    assert sequence.ask() == 3
    settled = sequence.fill(page(6, first=3))
    assert settled.entries == [entry(4), entry(5), entry(6)]
    assert not settled.gap
    assert not sequence.wanted


def test_what_comes_while_the_stream_is_read_follows_it() -> None:
    sequence = known(3)
    sequence.receive("e", entry(5))
    sequence.ask()
    sequence.receive("e", entry(6))
    assert sequence.fill(page(5, first=3)).entries == [entry(4), entry(5), entry(6)]
    assert not sequence.wanted


def test_what_goes_beyond_the_answer_is_asked_for_again() -> None:
    sequence = known(3)
    sequence.receive("e", entry(5))
    sequence.ask()
    sequence.receive("e", entry(8))
    assert sequence.fill(page(5, first=3)).entries == [entry(4), entry(5)]
    assert sequence.wanted
    assert repair(sequence, page(8, first=5)).entries == [entry(6), entry(7), entry(8)]
    assert not sequence.wanted


def test_a_double_is_dropped_after_a_look() -> None:
    sequence = known(3)
    assert not sequence.receive("e", entry(3))
    assert repair(sequence, page(3, first=3)) == Settled()
    assert not sequence.wanted


def test_a_stream_that_was_trimmed_gives_a_gap_and_what_is_left() -> None:
    sequence = known(3)
    sequence.doubt()
    settled = repair(sequence, page(9, first=7))
    assert settled.gap
    assert settled.entries == [entry(7), entry(8), entry(9)]
    assert sequence.since(3) is None


def parted(sequence: Sequence, answer: Page, newest: Page) -> Settled:
    """What becomes of an answer that does not go on from our place: the newest are asked for, and settle it."""
    assert repair(sequence, answer) == Settled()
    assert sequence.wanted
    assert sequence.ask() is None
    return sequence.fill(newest)


def test_another_epoch_gives_a_gap_and_all_it_holds() -> None:
    sequence = known(3)
    news = [said(offset, "f") for offset in (1, 2)]
    assert not sequence.receive("f", news[1])
    assert parted(sequence, Page("f", 2, []), Page("f", 2, news)) == Settled(news, gap=True)
    assert (sequence.epoch, sequence.offset) == ("f", 2)
    assert not sequence.wanted


def test_a_stream_that_lost_its_tail_is_found_out() -> None:
    sequence = known(3)
    sequence.doubt()
    settled = parted(sequence, Page("e", 2, []), page(2))
    assert settled == Settled(gap=True, went_back=True)
    assert sequence.offset == 2


def test_what_was_said_after_the_tail_was_lost_is_news_though_its_numbers_were_had() -> None:
    sequence = known(9)
    sequence.doubt()
    newest = Page("e", 8, [*page(6).entries, entry(7, "other"), entry(8, "other")])
    settled = parted(sequence, Page("e", 8, []), newest)
    assert settled == Settled([entry(7, "other"), entry(8, "other")], gap=True, went_back=True)


def test_a_stream_that_went_back_and_grew_again_is_found_out() -> None:
    sequence = known(3)
    sequence.doubt()
    newest = Page("e", 5, [entry(1), entry(2), *page(5, first=3, body="other").entries])
    settled = parted(sequence, page(5, first=3, body="other"), newest)
    assert settled.gap
    assert settled.went_back
    assert settled.entries == [entry(3, "other"), entry(4, "other"), entry(5, "other")]


def test_a_stream_that_another_node_has_renamed_gives_nothing_twice_and_tells_of_what_we_never_had() -> None:
    sequence = known(3)
    settled = repair(sequence, page(5, first=3, epoch="renewed"))
    assert settled.entries == [entry(4), entry(5)]
    assert settled.gap, "the other had had more than the stream has now: it is lost to our hearers"
    assert not settled.went_back
    assert sequence.epoch == "renewed"


def test_one_that_went_back_and_was_renamed_by_another_gives_what_follows_what_is_common() -> None:
    sequence = known(9)
    newest = Page("renewed", 8, [*page(6).entries, entry(7, "other"), entry(8, "other")])
    settled = parted(sequence, Page("renewed", 8, []), newest)
    assert settled == Settled([entry(7, "other"), entry(8, "other")], gap=True)


def test_of_a_renamed_stream_with_nothing_in_common_what_is_older_than_our_memory_is_not_given_again() -> None:
    """All that we remember is lost with the tail, and the node that found out has renamed the stream."""
    sequence = Sequence(2)
    repair(sequence, page(9))
    old, new = said(5, "e"), said(6, "renewed")
    settled = parted(sequence, Page("renewed", 6, []), Page("renewed", 6, [old, new]))
    assert settled == Settled([new], gap=True)


def test_a_long_repair_goes_on_where_the_answer_ended() -> None:
    sequence = known(3)
    sequence.doubt()
    assert repair(sequence, Page("e", 9, [entry(3), entry(4), entry(5)], more=True)).entries == [entry(4), entry(5)]
    assert sequence.wanted
    assert sequence.ask() == 5


def test_memory_serves_who_comes_back() -> None:
    sequence = known(3)
    sequence.receive("e", entry(4))
    assert sequence.since(4) == []
    assert sequence.since(2) == [entry(3), entry(4)]
    assert sequence.since(0) == [entry(1), entry(2), entry(3), entry(4)]
    assert sequence.since(5) is None, "a place we have never been at"


def test_memory_ends_where_it_is_told_to() -> None:
    sequence = known(9, keep=3)
    assert sequence.since(6) == [entry(7), entry(8), entry(9)]
    assert sequence.since(5) is None


def test_deleted_messages_are_given_to_nobody() -> None:
    sequence = known(3)
    sequence.forget()
    assert sequence.since(2) is None
    assert sequence.since(3) == []
    assert sequence.newest is None


class Stream:
    """Redis, as far as one topic goes: numbers messages and keeps the last `keep`."""

    def __init__(self, keep: int) -> None:
        self.entries: list[Entry] = []
        self.top = 0
        self.keep = keep

    def publish(self) -> Entry:
        self.top += 1
        self.entries = [*self.entries, entry(self.top)][-self.keep :]
        return self.entries[-1]

    def read(self, first: int | None) -> Page:
        return Page("e", self.top, [e for e in self.entries if first is None or e.offset >= first])


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(st.sampled_from(["publish", "publish and lose", "ask", "fill", "doubt", "late"]), max_size=80),
    keep=st.integers(1, 40),
)
def test_whatever_is_lost_the_subscriber_sees_each_message_once_in_order_or_a_gap(steps: list[str], keep: int) -> None:
    stream, sequence = Stream(keep), Sequence(keep)
    asked: int | None = None
    answer: Page | None = None
    seen: list[int] = []
    gaps = 0
    late: list[Entry] = []  # the channel is in order, so what is late is so for all that follows

    def settle(settled: Settled) -> None:
        nonlocal gaps
        gaps += settled.gap
        seen.extend(e.offset for e in settled.entries)

    def hear(e: Entry) -> None:
        if sequence.receive("e", e):
            seen.append(e.offset)

    for step in steps:
        match step:
            case "publish":
                late.append(stream.publish())
                for e in late:
                    hear(e)
                late.clear()
            case "late":
                late.append(stream.publish())
            case "publish and lose":
                stream.publish()
            case "doubt":
                sequence.doubt()
            case "ask" if answer is None and sequence.wanted:
                asked = sequence.ask()
                answer = stream.read(asked)
            case "fill" if answer is not None:
                settle(sequence.fill(answer))
                answer = None
    if answer is not None:
        settle(sequence.fill(answer))
    sequence.doubt()
    for _ in range(3):
        if sequence.wanted:
            settle(repair(sequence, stream.read(sequence.ask())))
    assert not sequence.wanted
    assert sequence.offset == stream.top
    assert seen == sorted(set(seen)), "once, and in order"
    if seen and not gaps:
        assert seen == list(range(seen[0], stream.top + 1)), "whole, unless a gap was told"


class Fallible:
    """A stream in a Redis that may lose its data, or its last moments, and the other nodes that may find that out."""

    def __init__(self, keep: int) -> None:
        self.entries: list[Entry] = []
        self.top = 0
        self.epoch = "e0"
        self.number = 0  # of all messages there ever were
        self.since_loss: list[int] = []
        self._keep = keep
        self._epochs = 0
        self._lost_tail = False

    def publish(self) -> Entry:
        self.top += 1
        self.number += 1
        self.since_loss.append(self.number)
        text = b'{"n":%d,"epoch":"%s"}' % (self.number, self.epoch.encode())
        self.entries = [*self.entries, Entry(self.top, text)][-self._keep :]
        return self.entries[-1]

    def flush(self) -> None:
        self._lost_tail = False
        self.renew()
        self.entries, self.top, self.since_loss = [], 0, []

    def lose_tail(self) -> None:
        keep = len(self.entries) // 2
        self.top -= len(self.entries) - keep
        self.entries = self.entries[:keep]
        self.since_loss = []
        self._lost_tail = True

    def found_out(self) -> None:
        """By another node."""
        if self._lost_tail:
            self.renew()

    def renew(self) -> str:
        self._lost_tail = False
        self._epochs += 1
        self.epoch = f"e{self._epochs}"
        return self.epoch

    def read(self, first: int | None) -> Page:
        return Page(self.epoch, self.top, [e for e in self.entries if first is None or e.offset >= first])


def numbered(e: Entry) -> int:
    """Which of all messages it is."""
    return int(e.text[5 : e.text.index(b",")])


STEPS = ("publish", "publish", "publish", "publish and lose", "ask", "fill", "flush", "lose tail", "found out")


@settings(deadline=None, max_examples=300)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=80), keep=st.integers(1, 40))
def test_whatever_redis_loses_nothing_is_given_twice_and_what_it_has_is_given_or_a_gap(
    steps: list[str], keep: int
) -> None:
    stream, sequence = Fallible(keep), Sequence(keep)
    answer: Page | None = None
    seen: list[int] = []
    gaps = 0

    def give(entries: list[Entry]) -> None:
        seen.extend(map(numbered, entries))

    def settle(page: Page) -> None:
        nonlocal gaps
        settled = sequence.fill(page)
        gaps += settled.gap
        give(settled.entries)
        if settled.went_back:
            sequence.doubt()
            sequence.rename(stream.renew() if stream.epoch == page.epoch else stream.epoch)

    settle(stream.read(sequence.ask()))
    for step in steps:
        match step:
            case "publish":
                e = stream.publish()
                if sequence.receive(stream.epoch, e):
                    give([e])
            case "publish and lose":
                stream.publish()
            case "flush":
                stream.flush()
                sequence.doubt()
            case "lose tail":
                stream.lose_tail()
                sequence.doubt()
            case "found out":
                stream.found_out()
            case "ask" if answer is None and sequence.wanted:
                answer = stream.read(sequence.ask())
            case "fill" if answer is not None:
                settle(answer)
                answer = None
    if answer is not None:
        settle(answer)
    sequence.doubt()
    for _ in range(6):
        if sequence.wanted:
            settle(stream.read(sequence.ask()))
    assert not sequence.wanted
    assert (sequence.epoch, sequence.offset) == (stream.epoch, stream.top)
    assert seen == sorted(set(seen)), "once, and in order"
    if not gaps:
        kept = {numbered(e) for e in stream.entries}
        assert kept.intersection(stream.since_loss) <= set(seen), "of what was said since the last loss"

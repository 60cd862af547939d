"""The sequence of one topic with history: delivers messages in order and once, and detects every loss.  (pure)

Redis numbers the messages of a topic with an offset that grows by one. The offset counts within an epoch, which changes
when Redis has lost data. Each message also has a mark. Two messages with the same offset never have the same mark. A
message names the mark of the message before it (`previous`), so it continues the sequence only if `previous` is the
mark of the last delivered message.

Pub/sub may lose messages that the Redis stream still has. If a message does not continue the sequence, the node holds
it and reads the stream (`wanted`). `fill` takes the result of the read and decides what to deliver. The read begins at
the last delivered message, and `fill` compares the marks:

- Same mark: the stream continues this sequence. Deliver the messages after it.
- Another mark, or the stream ends before our offset: Redis has lost data and reused the offset. The node reads the
  newest messages, delivers those that it has not delivered yet, and reports a gap.
- No mark to compare, because Redis has trimmed the message and the one after it: report a gap.

A topic without messages has an unborn epoch (`position`), and its first message continues the sequence. After a loss of
the pub/sub connection, it does so only if Redis is known to have lost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.core.position import ANY_EPOCH, Position, is_unborn, same_unborn, unborn_at
from gateway.core.recent_messages import HISTORY_BYTES, RecentMessages

# Live messages held during a read of the stream. Further messages are dropped, and the node reads the stream again.
MAX_HELD: Final = 1000


class StreamEntry(NamedTuple):
    """A message of a topic with history. All subscribers receive `body`, except the client `exclude`."""

    offset: int
    body: bytes
    exclude: str | None = None
    mark: int = 0
    previous: int = 0  # the mark of the message before it; 0: there is none

    def position(self, epoch: str) -> Position:
        """The message's position in `epoch`; gateway 0.1.0 wrote no marks."""
        return Position(epoch, self.offset, self.mark or None)


@dataclass(frozen=True, slots=True)
class StreamPage:
    """The result of a read of the stream: the entries from the requested offset on, in order."""

    epoch: str  # an unborn epoch if the topic has no message yet
    top: int  # offset of the newest message, which may have been trimmed
    entries: Listing[StreamEntry]
    more: bool = False  # the stream has more entries than this page
    mark: int = 0  # of the message at `top`
    beginning: str | None = None  # an unborn epoch; this page has every message published since its time
    last: bytes | None = None  # body of the newest message, if the stream no longer has it

    @property
    def reached(self) -> int:
        """The offset up to which this page is complete."""
        return self.entries[-1].offset if self.more else self.top

    @property
    def reached_mark(self) -> int:
        """The mark of the message at `reached`."""
        newest = self.entries[-1] if self.entries else None
        return newest.mark if newest is not None and newest.offset == self.reached else self.mark

    def mark_at(self, offset: int) -> int | None:
        """The mark of the message at `offset`; None if this page does not contain it."""
        for entry in self.entries:
            if entry.offset == offset:
                return entry.mark
            if entry.offset > offset:
                if entry.offset == offset + 1:
                    return entry.previous
                break
        return self.mark if offset == self.top else None


@dataclass(frozen=True, slots=True)
class FillResult:
    """The result of `fill`. The caller reports a gap if `gap` is set, then delivers `entries`."""

    entries: list[StreamEntry] = field(default_factory=list)
    gap: bool = False
    went_back: bool = False  # the stream has lost its newest messages; the caller must renew its epoch


class StreamPosition:
    """The node's position in one topic: `epoch`, `offset` and `mark` of the last message that it has delivered.

    It keeps the last `keep` messages, at most `size` bytes of them, as the stream does. So reconnecting clients recover
    from memory: a thousand clients at once cause no read from Redis.
    """

    __slots__ = (
        "_again",
        "_beginning",
        "_diverged",
        "_held",
        "_held_before_read",
        "_last",
        "_old",
        "_recent",
        "_unsure",
        "epoch",
        "mark",
        "offset",
        "wanted",
    )  # fmt: skip

    def __init__(self, keep: int, size: int = HISTORY_BYTES) -> None:
        self.epoch: str | None = None  # None: before the first read
        self.offset = 0
        self.mark = 0
        self.wanted = True  # the caller must read the stream
        self._held: list[tuple[str, StreamEntry]] = []  # live messages, with their epochs, that wait for a read
        self._held_before_read = 0  # the number of held messages at the start of the current read
        self._again = False  # the result of the current read may be outdated; read once more
        self._diverged = False  # the stream does not have our last message; the next read gets its newest messages
        self._recent: RecentMessages[StreamEntry] = RecentMessages(keep, size)
        self._beginning: str | None = None  # the unborn epoch of the position before the first message
        self._old = 0  # messages up to this mark are older than the first read, or than the last reported gap
        self._unsure = -1  # clients cannot recover from positions up to this offset
        self._last: bytes | None = None

    def message_received(self, epoch: str, entry: StreamEntry) -> bool:
        """Take a live message. True: it is the next one, deliver it. False: it is held, and `wanted` is set."""
        if not self.wanted and entry.offset == self.offset + 1 and entry.previous == self.mark:
            if epoch == self.epoch:
                self._advance(entry)
                return True
            if self.is_unborn:
                self.epoch, self._beginning = epoch, self.epoch
                self._advance(entry)
                return True
        # A message at or before our offset is a duplicate, or the stream has lost data. Only a read can decide.
        self.wanted = True
        if len(self._held) < MAX_HELD:
            self._held.append((epoch, entry))
        else:
            self._again = True
        return False

    def mark_missed(self) -> None:
        """Record that messages may have been missed: read the stream, and once more if a read is in progress."""
        self.wanted = self._again = True

    def begin_read(self) -> int | None:
        """Begin a read. Returns the offset to read from: that of our last message; None: read the newest messages."""
        self._held_before_read = len(self._held)
        self._again = False
        return None if self.epoch is None or self._diverged else self.offset

    def end_read(self, page: StreamPage) -> FillResult:
        """Take the result of the read that `begin_read` started. `wanted` stays set if another read is necessary."""
        if self.epoch is not None and not self._diverged and self._continues(page) is False:
            self._diverged = self.wanted = True  # messages before our offset may be new too; read them
            return FillResult()
        entries, gap, went_back = self._judge(page)
        self._diverged = False
        delivered = {entry.offset: entry for entry in (*self._recent, *page.entries)} if self._held else {}
        if self.epoch is None or gap:
            self._recent.clear()
            self._remember(page.entries)
            self._old, self._unsure = page.reached_mark, -1
        else:
            self._remember(entries)
        if page.epoch != self.epoch:
            self.epoch, self._beginning = page.epoch, page.beginning
        self.offset, self.mark, self._last = page.reached, page.reached_mark, page.last
        if self._recent and self._recent[-1].offset != self.offset:
            self._recent.clear()
        again = self._again or page.more
        self.wanted = again
        held, self._held = self._held, []
        for at, (epoch, entry) in enumerate(held):
            if entry.offset <= self.offset:
                same = delivered.get(entry.offset)
                # Do not compare the epochs: the epoch may have been renewed since.
                if entry.mark <= self._old if same is None else _is_same_message(entry, same):
                    continue
            if at < self._held_before_read and not page.more:
                gap = True  # the read began after this message arrived and does not contain it: Redis has lost it
            elif self.message_received(epoch, entry):
                entries.append(entry)
        self.wanted = bool(self._held) or again
        return FillResult(entries, gap, went_back)

    def forget_messages(self) -> None:
        """Forget the messages, because they were deleted, and keep the position."""
        self._recent.clear()
        self._last = None

    def set_epoch(self, epoch: str) -> None:
        """Record that the stream continues at the same offset under the new `epoch`."""
        self.epoch, self._beginning, self._unsure = epoch, None, -1

    def delivered_unnumbered(self) -> bool:
        """Record the delivery of a message without an offset. Clients can no longer recover from earlier positions.

        Returns whether the order was kept. It was not if numbered messages are held.
        """
        self._unsure = self.offset
        return not self.wanted

    def still_unborn(self, hours: int) -> None:
        """Record that at `hours` since 1970 the topic still has no message. New positions use that time."""
        if self.is_unborn:
            self.epoch = self._beginning = unborn_at(self.epoch or "", hours)

    @property
    def is_unborn(self) -> bool:
        """Whether the topic has no message yet, as far as the node knows."""
        return self.epoch is not None and is_unborn(self.epoch)

    @property
    def position(self) -> Position:
        """The position of the last delivered message. Only valid after the first read."""
        assert self.epoch is not None
        return Position(self.epoch, self.offset, self.mark)

    @property
    def newest(self) -> bytes | None:
        """The body of the last message, if any."""
        return self._recent[-1].body if self._recent else self._last

    def since(self, position: Position) -> list[StreamEntry] | None:
        """The messages after `position`, from memory; None if memory may not have all of them."""
        if position.epoch not in (self.epoch, ANY_EPOCH) and not (
            self._beginning and same_unborn(position.epoch, self._beginning)
        ):
            return None
        missed = self.offset - position.offset
        if not 0 <= missed <= len(self._recent) or position.offset <= self._unsure:
            return None
        entries = list(self._recent)[len(self._recent) - missed :]
        mark = entries[0].previous if entries else self.mark
        return entries if position.mark is None or position.mark == mark else None

    def _continues(self, page: StreamPage) -> bool | None:
        """Whether the stream continues from our last message; None: the page does not show it."""
        if self.is_unborn and page.epoch != self.epoch:
            return page.beginning is not None and same_unborn(self.epoch or "", page.beginning)
        known = next((entry for entry in page.entries if entry.offset == self.offset), None)
        last = self._recent[-1] if self._recent else None
        if page.epoch != self.epoch:  # another node renewed the epoch, or this is another history
            return known is not None and (known == last or (last is None and known.mark == self.mark != 0))
        if page.top < self.offset or (known is not None and last is not None and known != last):
            return False
        mark = page.mark_at(self.offset)
        return None if mark is None else mark == self.mark

    def _judge(self, page: StreamPage) -> tuple[list[StreamEntry], bool, bool]:
        """The entries of the page to deliver, whether there is a gap, and whether the stream has gone back."""
        if self.epoch is None:
            return [], False, False  # the node has not acknowledged any subscriber yet
        born = self.is_unborn
        renewed = page.epoch != self.epoch and not born
        continues = self._continues(page)
        if continues is False:
            return self._undelivered(page), True, page.epoch == self.epoch
        entries = [entry for entry in page.entries if entry.offset > self.offset]
        # A renewed epoch means lost data: other nodes had received messages that this node had not. Report a gap.
        return entries, renewed or continues is None or not self._is_complete(entries, page), False

    def _is_complete(self, entries: Listing[StreamEntry], page: StreamPage) -> bool:
        """Whether `entries` are all messages from our position to the end of the page, by their marks."""
        mark = self.mark
        for entry in entries:
            if entry.previous != mark:
                return False
            mark = entry.mark
        return len(entries) == page.reached - self.offset and mark == page.reached_mark

    def _undelivered(self, page: StreamPage) -> list[StreamEntry]:
        """The entries that this node has not delivered, of a stream that does not continue from our last message."""
        ours = set(self._recent)
        common = max((entry.offset for entry in page.entries if entry in ours), default=None)
        if common is not None:
            return [entry for entry in page.entries if entry.offset > common]
        # Marks grow within a stream, so messages older than all remembered ones may have been delivered before.
        oldest = self._recent[0].mark if self._recent else self.mark
        return [entry for entry in page.entries if entry.mark > oldest]

    def _remember(self, entries: Listing[StreamEntry]) -> None:
        """Keep `entries` for recovering clients. The kept messages have no holes."""
        for entry in entries:
            last = self._recent[-1] if self._recent else None
            if last is not None and (entry.offset, entry.previous) != (last.offset + 1, last.mark):
                self._recent.clear()
            self._recent.append(entry)

    def _advance(self, entry: StreamEntry) -> None:
        self.offset, self.mark = entry.offset, entry.mark
        self._recent.append(entry)


def _is_same_message(one: StreamEntry, other: StreamEntry) -> bool:
    """Whether two entries with the same offset are the same message. Entries without marks are compared by body."""
    return one.mark == other.mark and (one.mark != 0 or one.body == other.body)


def first_entries(entries: Listing[StreamEntry], size: int, each: int = 0) -> Listing[StreamEntry]:
    """The first entries of `entries`, up to and including the one that reaches `size` bytes; each has `each` more."""
    for at, entry in enumerate(entries):
        size -= len(entry.body) + each
        if size <= 0:
            return entries[: at + 1]
    return entries

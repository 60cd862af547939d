"""The messages of one topic with history, as a node delivers them: in order, each once, none silently missing.  (pure)

Redis numbers the messages of a topic: an offset that grows by one, within an epoch that changes when Redis has lost
data. Each message also has a mark, which no other message ever has at the same offset, and names the mark of the
message before it (`previous`). So a message continues the sequence only if it names the mark of the last one delivered.

Pub/sub may lose messages that the stream still has. Whenever a message does not continue the sequence, the node holds
it and reads the stream (`wanted`); `fill` takes what was read and settles what is delivered. The read begins at the
last message delivered, and the marks are compared:

- The same mark: the stream continues this sequence; what follows is delivered.
- Another mark, or a top below ours: Redis lost data and gave the offset to another message. The newest messages are
  read, those that this node has not delivered are delivered, and the loss is reported as a gap.
- Nothing to compare, because the message and the one after it were trimmed: a gap.

A topic without any message has an unborn epoch (`position`), and its first message continues it. After a loss of
pub/sub it does so only if Redis is known to have lost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.core.position import Position, is_unborn, later, same_beginning
from gateway.core.recent import HISTORY_BYTES, Recent

# Live messages held while the stream is read. Beyond it they are dropped, and the stream is read once more.
MAX_HELD: Final = 1000


class Entry(NamedTuple):
    """A message of a topic with history; `text` is what clients are sent, except the client `exclude`."""

    offset: int
    text: bytes
    exclude: str | None = None
    mark: int = 0
    previous: int = 0  # the mark of the message before it; 0: it is the first


@dataclass(frozen=True, slots=True)
class Page:
    """What the stream holds from the offset asked for, in order."""

    epoch: str  # an unborn one, if the topic has no message yet
    top: int  # offset of the newest message there ever was
    entries: Listing[Entry]
    more: bool = False  # not all entries fitted
    mark: int = 0  # of the newest message, which may have been trimmed
    beginning: str | None = None  # the unborn epoch from whose moment on the page has every message
    last: bytes | None = None  # text of the last value, where the stream no longer has it

    @property
    def reached(self) -> int:
        """The offset up to which this page tells."""
        return self.entries[-1].offset if self.more else self.top

    @property
    def reached_mark(self) -> int:
        """The mark of the message at `reached`."""
        newest = self.entries[-1] if self.entries else None
        return newest.mark if newest is not None and newest.offset == self.reached else self.mark

    def mark_at(self, offset: int) -> int | None:
        """The mark of the message at `offset`; None if this page cannot tell."""
        for entry in self.entries:
            if entry.offset == offset:
                return entry.mark
            if entry.offset > offset:
                if entry.offset == offset + 1:
                    return entry.previous
                break
        return self.mark if offset == self.top else None


@dataclass(frozen=True, slots=True)
class Settled:
    """What a page settled: report a gap if there is one, then deliver `entries`."""

    entries: list[Entry] = field(default_factory=list)
    gap: bool = False
    went_back: bool = False  # the stream has lost its tail: its epoch must be renewed


class Sequence:
    """The node's place in one topic: `epoch`, `offset` and `mark` of the last message given to its subscribers.

    It keeps the last `keep` messages, at most `size` bytes of them, as the stream does: clients that come back find
    what they missed here, and a thousand of them at once cost no read.
    """

    __slots__ = (
        "_again", "_asked", "_beginning", "_held", "_last", "_old", "_parted", "_recent", "_unsure", "epoch", "mark",
        "offset", "wanted",
    )  # fmt: skip

    def __init__(self, keep: int, size: int = HISTORY_BYTES) -> None:
        self.epoch: str | None = None  # None: nothing is known yet
        self.offset = 0
        self.mark = 0
        self.wanted = True  # the stream must be read
        self._held: list[tuple[str, Entry]] = []
        self._asked = 0  # so many of them were held when the stream was read
        self._again = False  # what is being read now may be old by the time it arrives
        self._parted = False  # the stream does not have our last message: its newest are read
        self._recent: Recent[Entry] = Recent(keep, size)
        self._beginning: str | None = None  # the unborn epoch whose position is the one before the first message
        self._old = 0  # messages up to this mark are older than the opening, or than the last gap that was reported
        self._unsure = -1  # positions up to this offset cannot be recovered from
        self._last: bytes | None = None

    def receive(self, epoch: str, entry: Entry) -> bool:
        """A live message. True: it is the next, deliver it. False: the stream must be read, `wanted` is set."""
        if not self.wanted and entry.offset == self.offset + 1 and entry.previous == self.mark:
            if epoch == self.epoch:
                self._advance(entry)
                return True
            if self.is_unborn:
                self.epoch, self._beginning = epoch, self.epoch
                self._advance(entry)
                return True
        # A message behind our place was delivered already, unless the stream went back; only the stream can tell.
        self.wanted = True
        if len(self._held) < MAX_HELD:
            self._held.append((epoch, entry))
        else:
            self._again = True
        return False

    def doubt(self) -> None:
        """Messages may have been missed: the stream must be read, once more if it is being read."""
        self.wanted = self._again = True

    def ask(self) -> int | None:
        """The stream is being read now: from our last message on, to compare it; None: its newest."""
        self._asked = len(self._held)
        self._again = False
        return None if self.epoch is None or self._parted else self.offset

    def fill(self, page: Page) -> Settled:
        """Take what was read after `ask`. `wanted` stays set if held messages go beyond it."""
        if self.epoch is not None and not self._parted and self._continues(page) is False:
            self._parted = self.wanted = True  # the page begins at our place; messages to deliver may stand before it
            return Settled()
        entries, gap, went_back = self._judge(page)
        self._parted = False
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
                # Its epoch may have been renewed since.
                if entry.mark <= self._old if same is None else _is(entry, same):
                    continue
            if at < self._asked and not page.more:
                gap = True  # the stream was read after this arrived and does not have it: Redis has lost it
            elif self.receive(epoch, entry):
                entries.append(entry)
        self.wanted = bool(self._held) or again
        return Settled(entries, gap, went_back)

    def forget(self) -> None:
        """Keep the place, not the messages: they were deleted."""
        self._recent.clear()
        self._last = None

    def rename(self, epoch: str) -> None:
        """The stream goes on where it was, under a new epoch."""
        self.epoch, self._beginning, self._unsure = epoch, None, -1

    def overheard(self) -> bool:
        """A message without a number was delivered: positions up to ours cannot be recovered from.

        Whether the order is kept: False if numbered messages are held, which this one has overtaken.
        """
        self._unsure = self.offset
        return not self.wanted

    def still_unborn(self, hours: int) -> None:
        """The topic has no message yet, at `hours` since 1970: positions given out from now on count from there."""
        if self.is_unborn:
            self.epoch = self._beginning = later(self.epoch or "", hours)

    @property
    def is_unborn(self) -> bool:
        """Whether the topic has no message yet, as far as is known."""
        return self.epoch is not None and is_unborn(self.epoch)

    @property
    def position(self) -> Position:
        """The place of the last message delivered; something must be known."""
        assert self.epoch is not None
        return Position(self.epoch, self.offset, self.mark)

    @property
    def newest(self) -> bytes | None:
        """The text of the last message, if there is one."""
        return self._recent[-1].text if self._recent else self._last

    def since(self, place: Position) -> list[Entry] | None:
        """What was delivered behind `place`, from memory; None if that is not certainly all that was published."""
        if place.epoch != self.epoch and not (self._beginning and same_beginning(place.epoch, self._beginning)):
            return None
        missed = self.offset - place.offset
        if not 0 <= missed <= len(self._recent) or place.offset <= self._unsure:
            return None
        entries = list(self._recent)[len(self._recent) - missed :]
        mark = entries[0].previous if entries else self.mark
        return entries if place.mark is None or place.mark == mark else None

    def _continues(self, page: Page) -> bool | None:
        """Whether the stream continues from our last message; None: the page does not tell."""
        if self.is_unborn and page.epoch != self.epoch:
            return page.beginning is not None and same_beginning(self.epoch or "", page.beginning)
        known = next((entry for entry in page.entries if entry.offset == self.offset), None)
        last = self._recent[-1] if self._recent else None
        if page.epoch != self.epoch:  # renamed by a node that had had more of it, or another history
            return known is not None and (known == last or (last is None and known.mark == self.mark != 0))
        if page.top < self.offset or (known is not None and last is not None and known != last):
            return False
        mark = page.mark_at(self.offset)
        return None if mark is None else mark == self.mark

    def _judge(self, page: Page) -> tuple[list[Entry], bool, bool]:
        """What of the page is to be delivered, whether something is lost, and whether the stream has gone back."""
        if self.epoch is None:
            return [], False, False  # no subscriber was promised anything yet
        born = self.is_unborn
        renewed = page.epoch != self.epoch and not born
        continues = self._continues(page)
        if continues is False:
            return self._news(page), True, page.epoch == self.epoch
        entries = [entry for entry in page.entries if entry.offset > self.offset]
        # A renamed stream had gone back: other nodes had received messages that are lost now, and this node had not.
        return entries, renewed or continues is None or not self._whole(entries, page), False

    def _whole(self, entries: Listing[Entry], page: Page) -> bool:
        """Whether `entries` lead from our place to the end of the page, each naming the mark of the one before."""
        mark = self.mark
        for entry in entries:
            if entry.previous != mark:
                return False
            mark = entry.mark
        return len(entries) == page.reached - self.offset and mark == page.reached_mark

    def _news(self, page: Page) -> list[Entry]:
        """What this node has not delivered of a stream that does not continue from our last message."""
        ours = set(self._recent)
        common = max((entry.offset for entry in page.entries if entry in ours), default=None)
        if common is not None:
            return [entry for entry in page.entries if entry.offset > common]
        # Within a stream marks grow, so messages older than all that we remember may have been delivered before.
        oldest = self._recent[0].mark if self._recent else self.mark
        return [entry for entry in page.entries if entry.mark > oldest]

    def _remember(self, entries: Listing[Entry]) -> None:
        """Keep `entries` for clients that come back; what is kept has no holes."""
        for entry in entries:
            last = self._recent[-1] if self._recent else None
            if last is not None and (entry.offset, entry.previous) != (last.offset + 1, last.mark):
                self._recent.clear()
            self._recent.append(entry)

    def _advance(self, entry: Entry) -> None:
        self.offset, self.mark = entry.offset, entry.mark
        self._recent.append(entry)


def _is(one: Entry, other: Entry) -> bool:
    """Whether two entries of the same offset are the same message. Those without a mark are compared by their text."""
    return one.mark == other.mark and (one.mark != 0 or one.text == other.text)


def beginning(entries: Listing[Entry], size: int) -> Listing[Entry]:
    """The first of `entries`, until they have `size` bytes or more."""
    for at, entry in enumerate(entries):
        size -= len(entry.text)
        if size <= 0:
            return entries[: at + 1]
    return entries

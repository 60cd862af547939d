"""One topic with history, as one node sees it: in order, without gaps, without doubles.  (pure)

Redis numbers the messages of a topic: an offset that grows by one, within an epoch that changes when Redis has lost
its data. Pub/sub may lose some of them and the stream still has them, so whenever something does not fit, what
arrives is held and the stream is asked (`wanted`). `fill` gets the answer and settles what really came.

A stream can also have gone back: Redis restarted from a file that lacked the last moments, and gives the same
offsets to other messages; or it has begun anew. So the answer always begins with the last message we know, and is
compared with it. If it is another, the stream is asked once more, for its newest: what follows the last message that
both have is news, and a gap is told, since what we had or what others had is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Final, NamedTuple

# Live messages held while the stream is read; beyond it they are let go: the stream has them.
MAX_HELD: Final = 1000


class Entry(NamedTuple):
    """A message of a topic with history; `text` is what clients are sent, but for the client `exclude`."""

    offset: int
    text: bytes
    exclude: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What the stream holds from the offset asked for, in order; `top`: the newest there is; `more`: not all fitted."""

    epoch: str
    top: int
    entries: Listing[Entry]
    more: bool = False

    @property
    def reached(self) -> int:
        """The offset up to which this page tells."""
        return self.entries[-1].offset if self.more else self.top


@dataclass(frozen=True, slots=True)
class Settled:
    """What a page settled: tell of a gap if there is one, then deliver `entries`."""

    entries: list[Entry] = field(default_factory=list)
    gap: bool = False
    went_back: bool = False  # the stream has lost its tail: its epoch must be renewed


class Sequence:
    """The node's place in one topic: `epoch` and `offset` of the last message handed to its subscribers.

    It keeps the last `keep` messages, as many as the stream: clients that come back find what they missed here, and a
    thousand of them at once cost no read.
    """

    __slots__ = ("_again", "_asked", "_held", "_parted", "_recent", "epoch", "offset", "wanted")

    def __init__(self, keep: int) -> None:
        self.epoch: str | None = None  # None: nothing is known yet
        self.offset = 0
        self.wanted = True  # the stream must be asked
        self._held: list[tuple[str, Entry]] = []
        self._asked = 0  # so many of them were held when the stream was asked
        self._again = False  # what is being asked now may be old by the time it is answered
        self._parted = False  # the stream has not what we have: it is asked where the two parted
        self._recent: deque[Entry] = deque(maxlen=keep)

    def receive(self, epoch: str, entry: Entry) -> bool:
        """A live message. True: it is the next, deliver it. False: the stream must tell, `wanted` is set."""
        if not self.wanted and epoch == self.epoch and entry.offset == self.offset + 1:
            self._advance(entry)
            return True
        # One that is behind our place was had already, unless the stream went back; only the stream can tell.
        self.wanted = True
        if len(self._held) < MAX_HELD:
            self._held.append((epoch, entry))
        else:
            self._again = True
        return False

    def doubt(self) -> None:
        """Messages may have been missed: the stream must be asked, once more if it is being asked."""
        self.wanted = self._again = True

    def ask(self) -> int | None:
        """The stream is being asked now: from our last message on, to compare it; None: for the newest."""
        self._asked = len(self._held)
        self._again = False
        return None if self.epoch is None or self._parted else self.offset

    def fill(self, page: Page) -> Settled:
        """The stream's answer to `ask`. `wanted` stays set if what came meanwhile goes beyond it."""
        if self.epoch is not None and not self._parted and not self._fits(page):
            self._parted = self.wanted = True  # the page begins at our place; what is news may stand before it
            return Settled()
        entries, gap, went_back = self._judge(page)
        self._parted = False
        if self.epoch is None or gap:
            self._recent.clear()
            self._recent.extend(page.entries[: len(page.entries) - len(entries)])
        self.epoch = page.epoch
        for entry in entries:
            self._advance(entry)
        self.offset = page.reached
        again = self._again or page.more
        self.wanted = again
        held, self._held = self._held, []
        for at, (epoch, entry) in enumerate(held):
            if epoch == self.epoch and entry.offset <= self.offset:
                continue  # had
            if at < self._asked and not page.more:
                gap = True  # the stream was asked after this came, and has it not: lost with another history
            elif self.receive(epoch, entry):
                entries.append(entry)
        self.wanted = bool(self._held) or again
        return Settled(entries, gap, went_back)

    def forget(self) -> None:
        """Keep the place, not the messages: they were deleted."""
        self._recent.clear()

    def rename(self, epoch: str) -> None:
        """The stream goes on where it was, under a new epoch."""
        self.epoch = epoch

    @property
    def newest(self) -> Entry | None:
        """The last message, if there is one."""
        return self._recent[-1] if self._recent else None

    def since(self, offset: int) -> list[Entry] | None:
        """What was delivered behind `offset`, from memory; None if memory does not reach back that far."""
        missed = self.offset - offset  # what is kept has no holes: a stream loses its oldest only
        if not 0 <= missed <= len(self._recent):
            return None
        return list(self._recent)[len(self._recent) - missed :]

    def _fits(self, page: Page) -> bool:
        """Whether the stream goes on from the last message we know, as far as can be seen."""
        known = next((entry for entry in page.entries if entry.offset == self.offset), None)
        last = self._recent[-1] if self._recent else None
        if page.epoch != self.epoch:
            return known is not None and known == last  # renamed, by a node that had had more of it
        return page.top >= self.offset and (last is None or known is None or known == last)

    def _judge(self, page: Page) -> tuple[list[Entry], bool, bool]:
        """What of the page is news, whether something is lost, and whether the stream has gone back."""
        if self.epoch is None:
            return [], False, False  # nobody was promised anything yet
        renewed = page.epoch != self.epoch
        if self._fits(page):
            entries = [entry for entry in page.entries if entry.offset > self.offset]
            # Where it was renamed it had gone back: what others had behind our last message is gone, and we had not.
            return entries, renewed or len(entries) != page.reached - self.offset, False
        return self._news(page, renewed), True, not renewed

    def _news(self, page: Page, renewed: bool) -> list[Entry]:
        """What follows the last message that we and the stream have, which are of one mind no longer."""
        ours = set(self._recent)
        common = max((entry.offset for entry in page.entries if entry in ours), default=None)
        if common is not None:
            return [entry for entry in page.entries if entry.offset > common]
        if renewed:  # what was said before may have been had: it is older than all that we remember
            end = f'"epoch":"{page.epoch}"}}'.encode()
            return [entry for entry in page.entries if entry.text.endswith(end)]
        oldest = self._recent[0].offset if self._recent else self.offset
        return [entry for entry in page.entries if entry.offset >= oldest]

    def _advance(self, entry: Entry) -> None:
        self.offset = entry.offset
        self._recent.append(entry)

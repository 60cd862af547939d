"""What one client received on one topic with messages 1, 2, 3 …; all promises are checked here.  (pure)

A skipped number is missing. It counts as reported if a notice arrived after the last number before it, with the
jump or later. If it still arrives, it counts as out of order instead of missing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """Counts of a phase's messages at one client."""

    received: int = 0
    lost_told: int = 0
    lost_untold: int = 0
    duplicated: int = 0
    reordered: int = 0
    notices: int = 0
    first_untold: int | None = None

    def __add__(self, other: Account) -> Account:
        first = self.first_untold if self.first_untold is not None else other.first_untold
        return Account(
            self.received + other.received, self.lost_told + other.lost_told, self.lost_untold + other.lost_untold,
            self.duplicated + other.duplicated, self.reordered + other.reordered, self.notices + other.notices, first,
        )  # fmt: skip

    @property
    def lost(self) -> int:
        """Reported or not."""
        return self.lost_told + self.lost_untold


class Ledger:
    """Records numbers and notices in the client's order; returns an account at the end of each phase."""

    def __init__(self) -> None:
        self.last = 0
        self._missing: dict[int, bool] = {}  # number -> whether it was reported
        self._noticed = False  # since the last number
        self._received = self._duplicated = self._reordered = self._notices = 0

    def number(self, number: int) -> None:
        """Records a received message."""
        self._received += 1
        if number > self.last:
            for passed in range(self.last + 1, number):
                self._missing[passed] = self._noticed
            self.last = number
            self._noticed = False
        elif number in self._missing:
            del self._missing[number]
            self._reordered += 1
        else:
            self._duplicated += 1

    def notice(self) -> None:
        """Records a notice that messages may be missing."""
        self._notices += 1
        self._noticed = True
        self._missing = dict.fromkeys(self._missing, True)

    def close(self, published: int, unsure: Collection[int] = ()) -> Account:
        """Returns the account up to the number `published`. `unsure`: numbers that may not have been published."""
        for passed in range(self.last + 1, published + 1):
            self._missing[passed] = self._noticed
        for number in unsure:
            self._missing.pop(number, None)
        unreported = [number for number, reported in self._missing.items() if not reported]
        account = Account(
            self._received, len(self._missing) - len(unreported), len(unreported), self._duplicated, self._reordered,
            self._notices, min(unreported, default=None),
        )  # fmt: skip
        self.last = max(self.last, published)
        self._missing = {}
        self._noticed = False
        self._received = self._duplicated = self._reordered = self._notices = 0
        return account

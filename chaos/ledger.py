"""What one client had of one topic whose messages are numbered 1, 2, 3 …: the judge of all promises.  (pure)

A number that was passed over is missing. It is told of if a notice came after the last number before it: with the
jump, or later. One that still comes is no longer missing, but out of order.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """What became of a phase's messages at one client."""

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
        """Told or not."""
        return self.lost_told + self.lost_untold


class Ledger:
    """Takes numbers and notices in the order the client had them; gives an account at the end of each phase."""

    def __init__(self) -> None:
        self.last = 0
        self._missing: dict[int, bool] = {}  # number -> whether it was told of
        self._noticed = False  # since the last number
        self._received = self._duplicated = self._reordered = self._notices = 0

    def number(self, number: int) -> None:
        """A message was handed on."""
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
        """The client was told that messages may be missing."""
        self._notices += 1
        self._noticed = True
        self._missing = dict.fromkeys(self._missing, True)

    def close(self, published: int, unsure: Collection[int] = ()) -> Account:
        """The account up to the number `published`; `unsure`: numbers that may not have been published."""
        for passed in range(self.last + 1, published + 1):
            self._missing[passed] = self._noticed
        for number in unsure:
            self._missing.pop(number, None)
        untold = [number for number, told in self._missing.items() if not told]
        account = Account(
            self._received, len(self._missing) - len(untold), len(untold), self._duplicated, self._reordered,
            self._notices, min(untold, default=None),
        )  # fmt: skip
        self.last = max(self.last, published)
        self._missing = {}
        self._noticed = False
        self._received = self._duplicated = self._reordered = self._notices = 0
        return account

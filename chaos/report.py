"""A phase's figures, the promises it broke, and the table of all.  (pure)"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

from chaos.ledger import Account

RESUME_SECONDS = 2.0  # after another server has taken over
LATE_SECONDS = 0.3  # of a machine that does too much at once
SPREAD = 0.2  # that the publishes of a cluster's master may be off the mean of all


@dataclass(frozen=True, slots=True)
class Failover:
    """A master was killed."""

    took: float  # seconds until another had taken over: the store's own time
    resumed: float  # seconds from then on until the last client heard the last topic again
    late: float = 0.0  # so late was, at worst meanwhile, the trial itself: what is measured in it is no better


@dataclass(frozen=True, slots=True)
class Phase:
    """One fault and what became of the messages meanwhile, summed over all clients."""

    fault: str
    keeps_history: bool  # the promise: nothing is lost on topics with history; else: nothing is lost in silence
    published: int
    history: Account
    plain: Account
    untold_clients: int  # clients that had no notice on some topic with history, where each must have one
    reconnects: Sequence[float] = ()  # seconds
    ghost_seconds: float = 0.0  # the longest that a client was listed which was gone
    ghost_limit: float = 0.0  # the promise
    listed: bool = False  # in the end the cluster listed exactly the clients there were
    faults: Sequence[str] = field(default_factory=tuple)  # what else went wrong, in sentences
    failovers: Sequence[Failover] = ()
    publishes: Sequence[int] = ()  # of each master of a cluster, if all were masters all the time

    @property
    def spread(self) -> float:
        """How far the publishes of one master were off the mean of all, at most: a share of that."""
        mean = statistics.mean(self.publishes)
        return max(abs(count - mean) for count in self.publishes) / mean

    def notes(self) -> list[str]:
        """What the table has no column for, in sentences."""
        found = []
        if self.failovers:
            took = ", ".join(f"{one.took:.1f}" for one in self.failovers)
            resumed = ", ".join(f"{one.resumed:.1f}" for one in self.failovers)
            late = max(one.late for one in self.failovers)
            found.append(
                f"another server had taken over after {took} s; all was delivered again {resumed} s after that"
                + (f" (the trial itself was up to {late:.1f} s late)" if late >= LATE_SECONDS else "")
            )
        if self.publishes:
            counts = ", ".join(f"{count:,}" for count in self.publishes)
            found.append(f"publishes of each master: {counts}; at most {self.spread:.0%} off their mean")
        return [f"{self.fault}: {sentence}" for sentence in found]

    def broken(self) -> list[str]:
        """Every promise it broke, as a sentence."""
        found = list(self.faults)
        history, plain = self.history, self.plain
        if self.keeps_history:
            for number, what in (
                (history.lost, "lost"), (history.duplicated, "duplicated"), (history.reordered, "out of order"),
            ):  # fmt: skip
                if number:
                    found.append(f"{number} messages {what} on topics with history")
        if history.lost_untold:
            found.append(f"{history.lost_untold} losses untold on topics with history, first {history.first_untold}")
        if plain.lost_untold:
            found.append(f"{plain.lost_untold} losses untold on topics without history, first {plain.first_untold}")
        if self.untold_clients:
            found.append(f"{self.untold_clients} clients were not told that the history is gone")
        if self.ghost_seconds > self.ghost_limit:
            found.append(f"a client that was gone was listed for {self.ghost_seconds:.1f} s")
        slowest = max((one.resumed - one.late for one in self.failovers), default=0.0)
        if slowest > RESUME_SECONDS:
            found.append(f"delivery resumed {slowest:.1f} s after another server had taken over")
        if self.publishes and self.spread > SPREAD:
            found.append(f"the publishes of a master were {self.spread:.0%} off the mean")
        if not self.listed:
            found.append("the cluster never listed exactly the clients there were")
        return [f"{self.fault}: {sentence}" for sentence in found]


def table(phases: Sequence[Phase]) -> Table:
    """One row a phase: counts on topics with history first, then on those without."""
    shown = Table(title="what the clients had", title_justify="left")
    shown.add_column("fault")
    for name in (
        "messages", "lost", "duplicated", "reordered", "told", "plain: lost", "told", "reconnects", "p50 s", "max s",
        "ghosts gone s",
    ):  # fmt: skip
        shown.add_column(name, justify="right")
    shown.add_column("")
    for phase in phases:
        shown.add_row(
            phase.fault, f"{phase.history.received + phase.plain.received:,}", f"{phase.history.lost:,}",
            str(phase.history.duplicated), str(phase.history.reordered), f"{phase.history.lost_told:,}",
            f"{phase.plain.lost:,}", f"{phase.plain.lost_told:,}", str(len(phase.reconnects)),
            f"{statistics.median(phase.reconnects):.1f}" if phase.reconnects else "-",
            f"{max(phase.reconnects):.1f}" if phase.reconnects else "-",
            f"{phase.ghost_seconds:.1f}",
            "[red]broken[/red]" if phase.broken() else "[green]kept[/green]",
        )  # fmt: skip
    return shown

"""A phase's figures, its broken promises, and the table of all phases.  (pure)"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

from chaos.ledger import Account

RESUME_SECONDS = 2.0  # after another server has taken over
LATE_SECONDS = 0.3  # delays of the test itself below this are not reported
SPREAD = 0.2  # largest deviation of a master's publishes from the mean


@dataclass(frozen=True, slots=True)
class Failover:
    """A master was killed."""

    took: float  # seconds until another server had taken over
    resumed: float  # seconds from then until the last client received the last topic again
    late: float = 0.0  # the test's own largest delay meanwhile, which limits the precision


@dataclass(frozen=True, slots=True)
class Phase:
    """One fault and the messages during it, summed over all clients."""

    fault: str
    keeps_history: bool  # promise: no loss on topics with history; otherwise: no unreported loss
    published: int
    history: Account
    plain: Account
    untold_clients: int  # clients without a required notice on some topic with history
    reconnects: Sequence[float] = ()  # seconds
    ghost_seconds: float = 0.0  # the longest time that a disconnected client was listed
    ghost_limit: float = 0.0  # its promised maximum
    listed: bool = False  # at the end the cluster listed exactly the connected clients
    faults: Sequence[str] = field(default_factory=tuple)  # other errors, in sentences
    failovers: Sequence[Failover] = ()
    publishes: Sequence[int] = ()  # of each master of a Redis Cluster, if no master changed

    @property
    def spread(self) -> float:
        """The largest deviation of a master's publishes from the mean, as a share of the mean."""
        mean = statistics.mean(self.publishes)
        return max(abs(count - mean) for count in self.publishes) / mean

    def notes(self) -> list[str]:
        """Figures without a column in the table, in sentences."""
        found = []
        if self.failovers:
            took = ", ".join(f"{one.took:.1f}" for one in self.failovers)
            resumed = ", ".join(f"{one.resumed:.1f}" for one in self.failovers)
            late = max(one.late for one in self.failovers)
            found.append(
                f"another server had taken over after {took} s; delivery was complete again {resumed} s later"
                + (f" (the test itself was delayed by up to {late:.1f} s)" if late >= LATE_SECONDS else "")
            )
        if self.publishes:
            counts = ", ".join(f"{count:,}" for count in self.publishes)
            found.append(f"publishes of each master: {counts}; at most {self.spread:.0%} off their mean")
        return [f"{self.fault}: {sentence}" for sentence in found]

    def broken(self) -> list[str]:
        """Every broken promise, as a sentence."""
        found = list(self.faults)
        history, plain = self.history, self.plain
        if self.keeps_history:
            for number, what in (
                (history.lost, "lost"), (history.duplicated, "duplicated"), (history.reordered, "out of order"),
            ):  # fmt: skip
                if number:
                    found.append(f"{number} messages {what} on topics with history")
        if history.lost_untold:
            found.append(
                f"{history.lost_untold} unreported losses on topics with history, first {history.first_untold}"
            )
        if plain.lost_untold:
            found.append(f"{plain.lost_untold} unreported losses on topics without history, first {plain.first_untold}")
        if self.untold_clients:
            found.append(f"{self.untold_clients} clients were not notified that the history is lost")
        if self.ghost_seconds > self.ghost_limit:
            found.append(f"a disconnected client was listed for {self.ghost_seconds:.1f} s")
        slowest = max((one.resumed - one.late for one in self.failovers), default=0.0)
        if slowest > RESUME_SECONDS:
            found.append(f"delivery resumed {slowest:.1f} s after another server had taken over")
        if self.publishes and self.spread > SPREAD:
            found.append(f"the publishes of a master were {self.spread:.0%} off the mean")
        if not self.listed:
            found.append("the cluster never listed exactly the connected clients")
        return [f"{self.fault}: {sentence}" for sentence in found]


def table(phases: Sequence[Phase]) -> Table:
    """One row per phase: counts on topics with history first, then on topics without."""
    shown = Table(title="what the clients received", title_justify="left")
    shown.add_column("fault", no_wrap=True)
    for name in (
        "messages", "lost", "duplicated", "reordered", "reported", "plain: lost", "reported", "reconnects", "p50 s",
        "max s", "stale rows gone s",
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

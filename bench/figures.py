"""Measured figures and their summary: medians of rounds, percentiles of delays.  (pure)"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Round: TypeAlias = Mapping[str, float]  # metric -> value of one round
Buckets: TypeAlias = Sequence[tuple[float, int]]  # value and count, values ascending


def percentile(buckets: Buckets, share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed; nan without values."""
    total = sum(count for _, count in buckets)
    seen = 0
    for value, count in buckets:
        seen += count
        if seen >= share * total and count:
            return value
    return float("nan")


@dataclass
class Scenario:
    """One scenario's figures."""

    date: str
    rounds: dict[str, list[Round]] = field(default_factory=dict)  # by contender
    failures: dict[str, str] = field(default_factory=dict)  # the last failure of each contender


@dataclass
class Results:
    """All figures, as stored in results.json."""

    machine: dict[str, str] = field(default_factory=dict)
    scenarios: dict[str, Scenario] = field(default_factory=dict)

    def median(self, scenario: str, contender: str, metric: str) -> float | None:
        """The median of the rounds; None without a value."""
        found = self.scenarios.get(scenario)
        values = [one[metric] for one in found.rounds.get(contender, ()) if metric in one] if found else []
        return statistics.median(values) if values else None

    def metrics(self, scenario: str) -> list[str]:
        """The scenario's metrics, in order of first appearance."""
        rounds = self.scenarios[scenario].rounds
        return list(dict.fromkeys(metric for ones in rounds.values() for one in ones for metric in one))

    def as_json(self) -> dict[str, Any]:
        """The document for results.json."""
        return {
            "machine": self.machine,
            "scenarios": {
                name: {"date": found.date, "rounds": found.rounds, "failures": found.failures}
                for name, found in self.scenarios.items()
            },
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Results:
        """The results of a document from results.json."""
        return cls(document["machine"], {name: Scenario(**found) for name, found in document["scenarios"].items()})

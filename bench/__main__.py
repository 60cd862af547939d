"""`python -m bench`: measures, prints the targets, writes results.json, results.md, the picture and the pages.

SCENARIOS="paced storm" only these; the others keep their results · ROUNDS=5 · QUICK=1 one short round with a fifth of
the clients, only for the targets; its figures are stored separately · ROUNDS=0 only writes the report

The first round runs all scenarios, later rounds only those with a target or a peer. After fourteen minutes only the
first round continues, so a slow machine runs fewer rounds.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from bench import contenders, machine, report, targets
from bench.contenders import CACHE, Contender
from bench.figures import Results, Round, Scenario
from bench.lab import lab
from bench.scenarios import BY_NAME, SCENARIOS
from bench.scenarios import Scenario as Asked

MAX_ROUNDS = 20
MAX_SECONDS = 14 * 60.0  # after this only the first round continues


class PlanError(ValueError):
    """An invalid variable; the message names it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, how often and for how long."""

    scenarios: tuple[Asked, ...]
    rounds: int
    quick: bool

    @property
    def seconds(self) -> float:
        """How long each figure is measured."""
        return 0.6 if self.quick else 1.2

    @property
    def share(self) -> float:
        """The share of the full number of clients."""
        return 0.2 if self.quick else 1.0


def plan(environ: Mapping[str, str]) -> Plan:
    """The plan of the environment.

    Raises:
        PlanError: A scenario does not exist, or a number is invalid.
    """
    names = environ.get("SCENARIOS", "").replace(",", " ").split()
    for name in names:
        if name not in BY_NAME:
            raise PlanError(f"SCENARIOS names {name!r}; the scenarios are {', '.join(BY_NAME)}")
    quick = environ.get("QUICK", "") not in ("", "0")
    rounds = environ.get("ROUNDS", "") or ("1" if quick else "3")
    if not (rounds.isascii() and rounds.isdigit() and int(rounds) <= MAX_ROUNDS):
        raise PlanError(f"ROUNDS must be a whole number from 0 to {MAX_ROUNDS}")
    asked = tuple(BY_NAME[name] for name in names) or (tuple(_targeted()) if quick else SCENARIOS)
    return Plan(asked, int(rounds), quick)


def schedule(plan: Plan) -> Iterator[tuple[int, Asked]]:
    """The rounds and their scenarios."""
    targeted = {scenario for scenario, _ in targets.asked()}
    for at in range(1, plan.rounds + 1):
        for scenario in plan.scenarios:
            if at == 1 or len(scenario.contenders) > 1 or scenario.name in targeted:
                yield at, scenario


def _targeted() -> Iterator[Asked]:
    """The scenarios, with only those contenders that a target needs."""
    wanted = targets.asked()
    for scenario in SCENARIOS:
        those = [contender for contender in scenario.contenders if (scenario.name, contender.name) in wanted]
        if those:
            yield replace(scenario, contenders=those)


def measure(asked: Asked, plan: Plan, at: int, found: Scenario) -> None:
    """Measures the contenders in turn, in round `at`; records a failure and continues with the next."""
    for contender in asked.contenders:
        if not contender.available:
            continue
        started = time.monotonic()
        try:
            figures = one(asked, contender, plan)
        except Exception as error:  # continue with the others
            found.failures[contender.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            text = f"failed: {str(error)[:2000]}"
        else:
            found.rounds.setdefault(contender.name, []).append(figures)
            text = "  ".join(f"{name} {report.number(value)}" for name, value in list(figures.items())[:4])
        took = time.monotonic() - started
        print(f"{asked.name:<18}{at}/{plan.rounds}  {contender.title:<18}{took:5.1f} s  {text}", flush=True)


def one(asked: Asked, contender: Contender, plan: Plan) -> Round:
    """One round of one contender, in a new lab."""
    with lab(plan.seconds) as made:
        return asked.measure(made, contender, plan.share)


def main() -> int:
    """Runs the bench. Returns 0 if everything was measured, even if a target was missed."""
    try:
        chosen = plan(os.environ)
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both signals stop all started processes
    folder = CACHE / "quick" if chosen.quick else report.HERE
    if chosen.quick:
        shutil.rmtree(folder, ignore_errors=True)
    fresh = chosen.rounds and chosen.scenarios is SCENARIOS
    results = Results() if fresh else report.load(folder / "results.json")
    started = time.monotonic()
    try:
        for at, asked in schedule(chosen):
            if at == 1:
                results.scenarios[asked.name] = Scenario(f"{datetime.now(UTC):%Y-%m-%d}")
            elif time.monotonic() > started + MAX_SECONDS:
                break
            measure(asked, chosen, at, results.scenarios[asked.name])
            results.machine = machine.describe() | contenders.versions()
            report.write(results, folder)  # after each scenario, so that an interruption loses nothing
        report.write(results, folder)
    except KeyboardInterrupt:
        print("interrupted; the results so far are stored", file=sys.stderr)
        return 130
    if not chosen.quick:
        for page in report.PAGES:
            page.write_text(report.renew(page, results))
    print(f"\n{report.verdicts(results)}\n\n{time.monotonic() - started:.0f} s; figures in {folder}/results.md")
    return int(any(found.failures for found in results.scenarios.values()))


if __name__ == "__main__":
    sys.exit(main())

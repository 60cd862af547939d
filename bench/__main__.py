"""`python -m bench`: measure, print the targets, write results.json, results.md, the picture and the pages' sections.

SCENARIOS="paced storm" only these, the others stay as they were · ROUNDS=5 · QUICK=1 one short round of a fifth of the
clients, of what the targets speak of: its figures are printed and kept out of the way · ROUNDS=0 write the report again

The first round goes over all scenarios, the others leave out what has neither a target nor a peer. After fourteen
minutes none is begun but in the first round: a slow machine makes fewer of them.
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
MAX_SECONDS = 14 * 60.0  # after which only the first round goes on


class PlanError(ValueError):
    """A word in the environment that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, how often, and how long a figure is looked at."""

    scenarios: tuple[Asked, ...]
    rounds: int
    quick: bool

    @property
    def seconds(self) -> float:
        """How long a figure is looked at."""
        return 0.6 if self.quick else 1.2

    @property
    def share(self) -> float:
        """Of the full number of clients."""
        return 0.2 if self.quick else 1.0


def plan(environ: Mapping[str, str]) -> Plan:
    """What the environment asks for.

    Raises:
        PlanError: It names a scenario that there is not, or a number that is none.
    """
    names = environ.get("SCENARIOS", "").replace(",", " ").split()
    for name in names:
        if name not in BY_NAME:
            raise PlanError(f"SCENARIOS: there is no {name!r}, only {', '.join(BY_NAME)}")
    quick = environ.get("QUICK", "") not in ("", "0")
    rounds = environ.get("ROUNDS", "") or ("1" if quick else "3")
    if not (rounds.isascii() and rounds.isdigit() and int(rounds) <= MAX_ROUNDS):
        raise PlanError(f"ROUNDS must be a whole number from 0 to {MAX_ROUNDS}")
    asked = tuple(BY_NAME[name] for name in names) or (tuple(_targeted()) if quick else SCENARIOS)
    return Plan(asked, int(rounds), quick)


def schedule(told: Plan) -> Iterator[tuple[int, Asked]]:
    """Rounds and what is measured in each."""
    targeted = {scenario for scenario, _ in targets.asked()}
    for at in range(1, told.rounds + 1):
        for scenario in told.scenarios:
            if at == 1 or len(scenario.contenders) > 1 or scenario.name in targeted:
                yield at, scenario


def _targeted() -> Iterator[Asked]:
    """The scenarios without what no target asks for."""
    wanted = targets.asked()
    for scenario in SCENARIOS:
        those = [contender for contender in scenario.contenders if (scenario.name, contender.name) in wanted]
        if those:
            yield replace(scenario, contenders=those)


def measure(asked: Asked, told: Plan, at: int, found: Scenario) -> None:
    """Its contenders in turn, for the round `at`; one that fails is noted, and the others go on."""
    for contender in asked.contenders:
        started = time.monotonic()
        try:
            figures = one(asked, contender, told)
        except Exception as error:  # whatever it was: the others are measured
            found.failures[contender.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            said = f"failed: {str(error)[:2000]}"
        else:
            found.rounds.setdefault(contender.name, []).append(figures)
            said = "  ".join(f"{name} {report.number(value)}" for name, value in list(figures.items())[:4])
        took = time.monotonic() - started
        print(f"{asked.name:<18}{at}/{told.rounds}  {contender.title:<18}{took:5.1f} s  {said}", flush=True)


def one(asked: Asked, contender: Contender, told: Plan) -> Round:
    """One round of one contender, in a lab of its own."""
    with lab(told.seconds) as made:
        return asked.measure(made, contender, told.share)


def main() -> int:
    """Run it; the exit code: 0 if all was measured, however fast."""
    try:
        told = plan(os.environ)
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way what runs is ended
    folder = CACHE / "quick" if told.quick else report.HERE
    if told.quick:
        shutil.rmtree(folder, ignore_errors=True)
    fresh = told.rounds and told.scenarios is SCENARIOS
    results = Results() if fresh else report.load(folder / "results.json")
    started = time.monotonic()
    try:
        for at, asked in schedule(told):
            if at == 1:
                results.scenarios[asked.name] = Scenario(f"{datetime.now(UTC):%Y-%m-%d}")
            elif time.monotonic() > started + MAX_SECONDS:
                break
            measure(asked, told, at, results.scenarios[asked.name])
            results.machine = machine.describe() | contenders.versions()
            report.write(results, folder)  # after each, so that nothing is lost if the next is interrupted
        report.write(results, folder)
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        return 130
    if not told.quick:
        for page in report.PAGES:
            page.write_text(report.renew(page, results))
    print(f"\n{report.verdicts(results)}\n\n{time.monotonic() - started:.0f} s; figures in {folder}/results.md")
    return int(any(found.failures for found in results.scenarios.values()))


if __name__ == "__main__":
    sys.exit(main())

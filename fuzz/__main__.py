"""`python -m fuzz`: random hostile input; exits with 0 if nothing was found.

SEED=7 repeats the same choices · MINUTES=5 duration · TARGETS="frames sockets" only these · ROUND=17 only this round
TARGETS=simulation runs histories of a simulated cluster on all cores; it cannot be combined with others
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fuzz import simulation
from fuzz.run import NAMES, Failed, Plan, run
from tests.kit.cluster import Cluster
from tests.kit.redis import Redis


def main() -> int:
    """Runs the rounds; returns the exit code."""
    try:
        seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 31))
        minutes = float(os.environ.get("MINUTES") or 5)
        only = int(os.environ["ROUND"]) if os.environ.get("ROUND") else None
        targets = tuple((os.environ.get("TARGETS") or " ".join(NAMES)).split())
        if targets != ("simulation",) and (unknown := set(targets) - set(NAMES)):
            others = " ".join(sorted(unknown))
            raise ValueError(f"TARGETS must be some of {' '.join(NAMES)}, or only simulation, not {others}")
    except ValueError as error:
        print(error)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both signals stop all started processes
    print(f"SEED={seed}", flush=True)
    started = time.monotonic()

    def show(line: str) -> None:
        print(f"{time.monotonic() - started:6.1f}  {line}", flush=True)

    if targets == ("simulation",):
        return _simulate(seed, minutes, show)
    with tempfile.TemporaryDirectory(prefix="gateway-fuzz-") as name:
        folder = Path(name)
        with (
            Redis(folder) as redis,
            Cluster(
                1, folder, redis, client_messages_per_second=1_000_000, client_log_lines_per_second=10_000
            ) as nodes,
        ):
            try:
                report = asyncio.run(run(Plan(seed, 60 * minutes, targets, only), nodes[0], folder, show))
            except Failed as failed:
                traceback.print_exception(failed)
                print(nodes[0].process.last_words()[-4000:])
                return 1
            except KeyboardInterrupt:
                print("interrupted")
                return 130
    for target, rounds in report.rounds.items():
        print(f"{target:10} {rounds:8,} rounds {report.octets[target]:14,} bytes")
    print("nothing was found")
    return 0


def _simulate(seed: int, minutes: float, show: Callable[[str], None]) -> int:
    try:
        played = simulation.run(seed, 60 * minutes, show)
    except Failed as failed:
        print(failed)
        return 1
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    print(f"{played:,} histories, nothing was found")
    return 0


if __name__ == "__main__":
    sys.exit(main())

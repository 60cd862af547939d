"""`python -m chaos`: causes failures in a private cluster and prints one table; exits with 0 if every promise was kept.

SEED=7 repeats the same choices · MINUTES=30 random faults for this time · FAULTS="kill flush" only these · QUICK=1
shorter waits and fewer clients · CLIENTS=100 · CLIENT=centrifugo the clients are those of centrifuge-python ·
FSYNC=always Redis syncs each write ·
REDIS=sentinel a master, two replicas and three Sentinels · REDIS=cluster three masters with a replica each ·
WAIT=1 number of replicas that must confirm a message ·
HOSTS=1 two load balancers, four nodes and six Redis processes, each on its own host, with network cuts
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from chaos import plan as plans
from chaos import report, run, stack
from chaos.faults import KNOWN
from chaos.network import NetworkError


def main() -> int:
    """Runs the faults; returns the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    try:
        plan = plans.from_env(os.environ, KNOWN, random.SystemRandom().randrange(1 << 32))
    except plans.PlanError as error:
        console.print(str(error), markup=False)
        return 2
    # Both signals stop all started processes: asyncio cancels its task at Ctrl-C. An exception raised at an arbitrary
    # place could be caught there, and the run would continue.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may have set it to be ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder = Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
    started = time.monotonic()

    def show(line: str) -> None:
        console.print(f"{time.monotonic() - started:6.1f}  {line}", markup=False)

    console.print(f"SEED={plan.seed}")
    kept = False
    try:
        with stack.running(plan, folder) as running:
            phases = asyncio.run(run.run(plan, running, show))
            complaints = running.nodes.complaints()
        console.print(report.table(phases))
        for phase in phases:
            for line in phase.notes():
                console.print(line, markup=False)
        broken = [sentence for phase in phases for sentence in phase.broken()]
        kept = not broken
        for line in broken:
            console.print(line, markup=False, style="red")
        for line in complaints[:20]:
            console.print(line, markup=False, style="yellow")
    except KeyboardInterrupt:
        console.print("interrupted")
    except (TimeoutError, NetworkError) as error:
        console.print(str(error), markup=False, style="red")
    finally:
        if kept:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            console.print(f"logs: {folder}", markup=False)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

"""`python -m chaos`: break a private cluster, count, print one table; 0 if every promise was kept.

SEED=7 the same choices again · MINUTES=30 faults by chance for so long · FAULTS="kill flush" only these · QUICK=1
shorter waits and fewer clients · CLIENTS=100 · FSYNC=always Redis syncs each write ·
REDIS=sentinel a master, two replicas and three Sentinels · REDIS=cluster three masters and a replica of each ·
WAIT=1 so many replicas must have a message first ·
HOSTS=1 two load balancers, four nodes, six of Redis, each on a host of its own; cut from each other
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
    """Run it; the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    try:
        plan = plans.from_env(os.environ, KNOWN, random.SystemRandom().randrange(1 << 32))
    except plans.PlanError as error:
        console.print(str(error), markup=False)
        return 2
    # Either way it ends what it has started: asyncio cancels its task at Ctrl-C. An exception raised wherever we happen
    # to be could be swallowed there, and the run would go on.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been started with it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder = Path(tempfile.mkdtemp(prefix="gateway-chaos-"))
    started = time.monotonic()

    def tell(line: str) -> None:
        console.print(f"{time.monotonic() - started:6.1f}  {line}", markup=False)

    console.print(f"SEED={plan.seed}")
    kept = False
    try:
        with stack.running(plan, folder) as running:
            phases = asyncio.run(run.run(plan, running, tell))
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

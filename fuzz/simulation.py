"""Runs histories of a simulated cluster, on all cores, until the time is over."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import structlog

from fuzz.run import Failed
from tests.simulation.search import report

BATCH = 20  # histories per process and step


def run(seed: int, seconds: float, show: Callable[[str], None]) -> int:
    """Runs the histories of the seeds from `seed` on; returns their number.

    Raises:
        Failed: One breaks a promise; the message has its seed and its shortest steps.
    """
    begun = time.monotonic()
    ends = begun + seconds
    processes = os.cpu_count() or 1
    played = 0
    with ProcessPoolExecutor(processes, initializer=_quiet) as pool:
        while played == 0 or time.monotonic() < ends:
            first = seed + played
            for found in pool.map(_play, [first + BATCH * at for at in range(processes)]):
                if found is not None:
                    raise Failed(f"{found}\nrepeat: make fuzz TARGETS=simulation SEED={found.split()[1].rstrip(':')}")
            played += BATCH * processes
            show(f"{played:,} histories")
    return played


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _play(first: int) -> str | None:
    return next(filter(None, map(report, range(first, first + BATCH))), None)

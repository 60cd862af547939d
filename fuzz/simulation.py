"""Runs histories of a simulated cluster, on the cores it may use, until the time is over."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from fuzz.run import Failed
from tests.simulation import search

SHOW_SECONDS = 10.0


def run(seed: int, seconds: float, show: Callable[[str], None]) -> int:
    """Runs the histories of the seeds from `seed` on; returns their number.

    Raises:
        Failed: One breaks a promise; the message has its seed and its shortest steps.
    """
    begun = shown = time.monotonic()
    processes = len(os.sched_getaffinity(0))
    seeds = itertools.count(seed)
    played = 0
    playing: dict[Future[str | None], int] = {}
    with ProcessPoolExecutor(processes, initializer=_quiet) as pool:
        while True:
            now = time.monotonic()
            while len(playing) < 2 * processes and now < begun + seconds:
                one = next(seeds)
                playing[pool.submit(search.play, one)] = one
            if not playing:
                return played
            if now >= shown + SHOW_SECONDS:
                shown = now
                rate = 60 * played / (now - begun)
                show(f"{played:,} histories, {rate:,.0f} a minute, now seeds {', '.join(map(str, playing.values()))}")
            for done in wait(playing, SHOW_SECONDS, FIRST_COMPLETED).done:
                one = playing.pop(done)
                played += 1
                if (found := done.result()) is not None:
                    show(f"{found}\nlooking for the shortest steps, for at most {search.SHRINK_SECONDS:.0f} seconds")
                    for other in playing:
                        other.cancel()
                    found = pool.submit(search.shortest, one).result()
                    raise Failed(f"{found}\nrepeat: make fuzz TARGETS=simulation SEED={one}")


def _quiet() -> None:
    logging.disable(logging.CRITICAL)

"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable
from pathlib import Path

from stack.place import StackError


def until(holds: Callable[[], bool], seconds: float, otherwise: Callable[[], str], log: Path | None = None) -> None:
    """Returns when `holds()` is true; at the deadline raises StackError with the sentence of `otherwise()`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise StackError(f"{otherwise()} (waited {seconds:.0f} s)", log)
        time.sleep(0.1)

"""A program with one singleton, which counts: `python -m tests.counter URL NAMESPACE NAME LEASE_SECONDS`."""

from __future__ import annotations

import asyncio
import sys

from gateway.services.manager import Run, ServiceManager


async def main(url: str, namespace: str, name: str, lease_seconds: float) -> None:
    """Count every 100 ms, wherever it leads."""
    async with ServiceManager.connect(url, namespace=namespace, name=name, lease_seconds=lease_seconds) as services:
        ticks = 0

        @services.every(0.1, singleton=True)
        async def counter(run: Run) -> None:
            nonlocal ticks
            ticks += 1
            await run.publish("counter", {"token": run.token, "tick": ticks, "by": name})

        await services.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))

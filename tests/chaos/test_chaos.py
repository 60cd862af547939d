"""`make chaos`, in short: a few faults on a small cluster, and every promise kept."""

from __future__ import annotations

import asyncio
import sys

from tests.cluster import ROOT
from tests.processes import clean_environment

SECONDS = 120.0  # it takes about 40 on an idle machine


async def test_a_killed_node_deaf_nodes_a_restarted_redis_and_a_flushed_one() -> None:
    told = {"QUICK": "1", "SEED": "7", "CLIENTS": "30", "FAULTS": "kill deafen redis-restart flush"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chaos", cwd=ROOT, env=clean_environment() | told,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()  # it ends what it has started
            await process.wait()
    text = output.decode()
    assert process.returncode == 0, text
    for about in ("kill -9 a node", "cut pub/sub, 3 times", "stop and start Redis", "FLUSHALL"):
        assert any(about in line and "kept" in line for line in text.splitlines()), text

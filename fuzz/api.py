"""The HTTP API against what its own description allows and forbids, by schemathesis."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from fuzz.live import Found
from tests.cluster import API_KEY, Node

# Carried out, these would end the node that is tried, or send its clients away.
SPARED: Final = "/drain|/rebalance"

# Data that its schema forbids may also be so large that nobody looks at it.
CONFIG: Final = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429, "5xx"]
"""


async def explore(node: Node, seed: int, examples: int, folder: Path) -> None:
    """Try every operation with about `examples` requests by chance, and those that its schemas make likely to fail.

    Raises:
        Found: An answer is not what the description says, or none at all.
    """
    (folder / "schemathesis.toml").write_text(CONFIG)
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{node.url}/api/openapi.json",
        "--header", f"Authorization: Bearer {API_KEY}", "--exclude-path-regex", SPARED, "--seed", str(seed),
        "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--workers", "1", "--no-color",
        "--warnings", "off",
        # A time that lies ahead, a cursor from the page before: not all that is refused can be said in a schema.
        "--exclude-checks", "positive_data_acceptance",
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(600):
            output, _ = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise Found(f"schemathesis, seed {seed}:\n{output.decode()}")

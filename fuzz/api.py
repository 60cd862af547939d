"""Checks the HTTP API against its OpenAPI document, with schemathesis."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from fuzz.live import Found
from tests.kit.node import API_KEY, Node

# These would stop the tested node or disconnect its clients.
SPARED: Final = "/drain|/rebalance"

# The node rejects very large invalid data before it validates it.
CONFIG: Final = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429, "5xx"]
"""


async def explore(node: Node, seed: int, examples: int, folder: Path) -> None:
    """Tests every operation with about `examples` random requests, and with requests that are likely to fail.

    Raises:
        Found: A response does not match the document, or is missing.
    """
    (folder / "schemathesis.toml").write_text(CONFIG)
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{node.url}/api/openapi.json",
        "--header", f"Authorization: Bearer {API_KEY}", "--exclude-path-regex", SPARED, "--seed", str(seed),
        "--max-examples", str(examples), "--phases", "examples,coverage,fuzzing", "--workers", "1", "--no-color",
        "--warnings", "off",
        # A schema cannot express every rule, for example a time in the future or a cursor from the last page.
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

"""The place where samples run, once for all of them; and Chromium."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import browser as browser
from tests.docs.place import Place, running


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """A node behind HAProxy for all samples of this process."""
    with tempfile.TemporaryDirectory(prefix="gateway-docs-") as folder, running(Path(folder)) as found:
        yield found

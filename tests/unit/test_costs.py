"""docs/reference/limits.md shows the bounds that are tested."""

from __future__ import annotations

from tests import costs
from tests.kit.process import ROOT


def test_the_page_shows_the_bounds_that_are_tested() -> None:
    page = (ROOT / "docs" / "reference" / "limits.md").read_text()
    shown = page.partition(costs.BEGIN)[2].partition(costs.END)[0].strip()
    assert shown == costs.table(), (
        f"write this into docs/reference/limits.md between {costs.BEGIN} and {costs.END}:\n{costs.table()}"
    )

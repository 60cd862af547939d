"""Each link in the repository's Markdown leads to a file and a heading that exist, also where MkDocs does not look."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.kit.process import ROOT

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md"), *ROOT.glob("docs/**/*.md")})
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", each) for each in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults(page: Path, text: str) -> list[str]:
    """The links of the text that lead nowhere."""
    text = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    found = []
    for path, anchor in LINK.findall(text):
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(f"{path} is not there")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            found.append(f"{path} has no heading {anchor}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_heading_that_exists(page: Path) -> None:
    assert faults(page, page.read_text()) == []


def test_a_wrong_link_would_be_found() -> None:
    text = "[a](haproxy/README.md#environment) [b](haproxy/README.md#nothing) [c](no/such.md) `[d](none.md)`"
    assert faults(ROOT / "README.md", text) == ["haproxy/README.md has no heading nothing", "no/such.md is not there"]

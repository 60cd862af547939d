"""Prepares the pages for MkDocs: the README is the first page, and links out of docs/ lead to the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(!?\[[^\]]*\]\(|src=\"|href=\")(?!\w+:|#|/)([^)\s\"]+)")


def on_page_read_source(page: Any, **_: Any) -> str | None:
    """The README instead of the placeholder of the first page."""
    return (ROOT / "README.md").read_text() if page.file.src_uri == "index.md" else None


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Point each link to a file outside docs/ at the repository."""
    place = (ROOT / "docs" / page.file.src_uri).parent
    folder = ROOT if page.file.src_uri == "index.md" else place

    def target(link: re.Match[str]) -> str:
        path, separator, anchor = link[2].partition("#")
        file = (folder / path).resolve()
        if not file.is_relative_to(ROOT) or not file.exists():
            return link[0]  # MkDocs reports it
        if file.is_relative_to(ROOT / "docs"):
            return f"{link[1]}{os.path.relpath(file, place)}{separator}{anchor}"
        kind = "tree" if file.is_dir() else "raw" if link[1].startswith("!") else "blob"
        return f"{link[1]}{config.repo_url.rstrip('/')}/{kind}/main/{file.relative_to(ROOT)}{separator}{anchor}"

    return _LINK.sub(target, markdown)

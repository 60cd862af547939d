"""The start page and what it needs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

STATIC: Final = Path(str(resources.files("gateway"))) / "static"

# Our pages load nothing from elsewhere, and speak to nobody but the host they came from.
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def index(_request: Request) -> Response:
    """The start page."""
    return FileResponse(STATIC / "index.html", headers=_HEADERS)


ROUTES: list[BaseRoute] = [Route("/", index), Mount("/static", StaticFiles(directory=STATIC))]

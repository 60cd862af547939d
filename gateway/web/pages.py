"""The start page, the operators' console, and what they need."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC: Final = Path(str(resources.files("gateway"))) / "static"

# Our pages load nothing from elsewhere, and speak to nobody but the host they came from. `Door` adds the rest.
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
}
# The browser client is public, and a module is loaded by CORS: pages of other hosts may use it too.
_CLIENT_HEADERS: Final = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
}
_CLIENT: Final = {
    "/gateway.js": "text/javascript; charset=utf-8",
    "/gateway.http.js": "text/javascript; charset=utf-8",
    "/gateway.classic.js": "text/javascript; charset=utf-8",
    "/gateway.d.ts": "text/plain; charset=utf-8",
}


class Assets(StaticFiles):
    """Files that a browser asks about each time it uses them: after a deploy, no page runs with yesterday's script."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file, or 304 if the browser has it as it is."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


# protocol.md, clients.md and topics.md are those of docs/, by links.
_files: Final = Assets(directory=STATIC, follow_symlink=True)


async def index(_request: Request) -> Response:
    """The start page."""
    return FileResponse(STATIC / "index.html", headers=_HEADERS)


async def console(_request: Request) -> Response:
    """The operators' console. It holds nothing secret: what it shows, it asks for with the reader's own credential."""
    return FileResponse(STATIC / "console" / "index.html", headers=_HEADERS)


async def client(request: Request) -> Response:
    """The browser client, as a module or a classic script, or its description."""
    response = await _files.get_response(f"client{request.url.path}", request.scope)
    response.headers.update({"content-type": _CLIENT[request.url.path], **_CLIENT_HEADERS})
    return response


ROUTES: list[BaseRoute] = [
    Route("/", index),
    Route("/console", console),
    *(Route(path, client) for path in _CLIENT),
    Mount("/static", _files),
]

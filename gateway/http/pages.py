"""The start page, the operators' console, and their static files."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

STATIC: Final = Path(str(resources.files("gateway"))) / "static"

# Our pages load nothing from other hosts, and connect only to their own host. `SecurityMiddleware` adds the other
# headers.
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
}
# Pages of other hosts may use the browser client too. Browsers load modules by CORS, so it needs these headers.
_CLIENT_HEADERS: Final = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
}
_CLIENT: Final = {
    "/gateway.js": "text/javascript; charset=utf-8",
    "/gateway.http.js": "text/javascript; charset=utf-8",
    "/gateway.d.ts": "text/plain; charset=utf-8",
}


class Assets(StaticFiles):
    """Static files that browsers revalidate at each use, so that no page runs an old script after a deployment."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or 304 if the browser's copy is current."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


_files: Final = Assets(directory=STATIC)


async def index(_request: Request) -> Response:
    """The start page."""
    return FileResponse(STATIC / "index.html", headers=_HEADERS)


async def console(_request: Request) -> Response:
    """The operators' console. The page has no secrets: it calls the API with the credential of its user."""
    return FileResponse(STATIC / "console" / "index.html", headers=_HEADERS)


@cache
def classic_script() -> str:
    """The browser client for pages without modules: its exports are the properties of one global, `gateway`."""
    names: list[str] = []

    def without_export(found: re.Match[str]) -> str:
        names.append(found[2])
        return found[1]

    module = (STATIC / "client" / "gateway.js").read_text()
    body = re.sub(r"^export ((?:class|function\*?) (\w+))", without_export, module, flags=re.MULTILINE)
    return f'globalThis.gateway = (() => {{\n"use strict";\n{body}\nreturn {{ {", ".join(names)} }};\n}})();\n'


async def classic(request: Request) -> Response:
    """The classic script, or 304 if the browser's copy is current."""
    script = classic_script()
    headers = Headers({"etag": f'"{hashlib.sha256(script.encode()).hexdigest()}"', "cache-control": "no-cache"})
    if _files.is_not_modified(headers, request.headers):
        response: Response = NotModifiedResponse(headers)
    else:
        response = Response(script, headers=dict(headers), media_type=_CLIENT["/gateway.js"])
    response.headers.update(_CLIENT_HEADERS)
    return response


async def client(request: Request) -> Response:
    """The browser client as a module, or its type declarations."""
    response = await _files.get_response(f"client{request.url.path}", request.scope)
    response.headers.update({"content-type": _CLIENT[request.url.path], **_CLIENT_HEADERS})
    return response


ROUTES: list[BaseRoute] = [
    Route("/", index),
    Route("/console", console),
    *(Route(path, client) for path in _CLIENT),
    Route("/gateway.classic.js", classic),
    Mount("/static", _files),
]

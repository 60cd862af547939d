"""The API's response to an internal error."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.http.api import resource


async def broken(_request: Request) -> Response:
    """A handler with a fault."""
    raise ZeroDivisionError("secret detail")


@pytest.fixture
def app() -> Starlette:
    """An application with a fault, and the API's handlers."""
    return Starlette(routes=[Route("/broken", broken)], exception_handlers=resource.EXCEPTION_HANDLERS)


async def test_a_fault_is_answered_in_our_form_without_its_details(app: Starlette) -> None:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as http:
        answer = await http.get("/broken")
    assert answer.status_code == 500
    assert answer.json() == {"error": {"code": "internal", "message": "The request failed in the node; see its log"}}


async def test_a_fault_is_raised_on_for_the_log(app: Starlette) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as http:
        with pytest.raises(ZeroDivisionError):
            await http.get("/broken")


@pytest.mark.parametrize("name", ["a", "a\n", "\na", "a\nb", "a\r\n\x0b\x0c\u2028b", "a/b"])
async def test_a_name_in_a_path_is_what_was_asked_for(name: str) -> None:
    async def said(request: Request) -> Response:
        return Response(repr(request.path_params["name"]))

    app = Starlette(routes=[Route("/names/{name:name}", said)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as http:
        answer = await http.get(f"/names/{quote(name, safe='')}")
    assert answer.text == repr(name)

"""For load balancers and Prometheus: alive, ready, measured."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway.metrics import CONTENT_TYPE
from gateway.node import Node


async def healthz(_request: Request) -> Response:
    """200 as long as the process can answer at all: not ready is no reason to be killed."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """200 if new clients should come here, else 503 and why."""
    node: Node = request.app.state.node
    # Two load balancers on one host call themselves differently (haproxy.cfg).
    address = request.client.host if request.client else ""
    reasons = node.asked_ready(f"{address} {request.headers.get('user-agent', '')}")
    about = {"ready": not reasons, "reasons": reasons}
    if impaired := node.condition.impaired():  # for people: it makes no node unready
        about["impaired"] = impaired
    return JSONResponse(about, status_code=503 if reasons else 200)


async def metrics(request: Request) -> Response:
    """All instruments in Prometheus' text format."""
    node: Node = request.app.state.node
    return Response(node.metrics.exposition(), headers={"content-type": CONTENT_TYPE})


ROUTES = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]

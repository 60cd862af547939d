"""The endpoints for load balancers and Prometheus: liveness, readiness, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway.metrics import CONTENT_TYPE
from gateway.node.node import Node


async def healthz(_request: Request) -> Response:
    """Always 200 while the process runs: a node that is not ready must not be killed."""
    return PlainTextResponse("ok\n")


async def readyz(request: Request) -> Response:
    """200 if the node accepts new clients, otherwise 503 with the reasons."""
    node: Node = request.app.state.node
    # Two load balancers on one host have different user agents (haproxy.cfg).
    address = request.client.host if request.client else ""
    reasons = node.readiness.unready_reasons()
    node.drain.readiness_checked(f"{address} {request.headers.get('user-agent', '')}", bool(reasons))
    about = {"ready": not reasons, "reasons": reasons}
    if impaired := node.readiness.impairments():  # for operators; it does not affect readiness
        about["impaired"] = impaired
    return JSONResponse(about, status_code=503 if reasons else 200)


async def metrics(request: Request) -> Response:
    """All metrics in the text format of Prometheus."""
    node: Node = request.app.state.node
    return Response(node.metrics.exposition(), headers={"content-type": CONTENT_TYPE})


ROUTES = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]

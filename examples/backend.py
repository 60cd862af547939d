"""A minimal back end (docs/how-to/answer-from-your-back-end.md).

GATEWAY_BACKEND_SECRET=… uvicorn examples.backend:app --port 3000
"""

import hashlib
import hmac
import itertools
import os
import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

SECRET = os.environ["GATEWAY_BACKEND_SECRET"].encode()
numbers = itertools.count(1)


async def body_of_gateway(request: Request) -> bytes:
    at, _, given = request.headers.get("gateway-signature", "").removeprefix("t=").partition(",v1=")
    query, body = request.scope["query_string"], await request.body()
    target = request.scope["raw_path"] + (b"?" + query if query else b"")
    signed = b"%b.%b.%b.%b" % (at.encode(), request.method.encode(), target, body)
    if not hmac.compare_digest(hmac.new(SECRET, signed, hashlib.sha256).hexdigest().encode(), given.encode()):
        raise HTTPException(401, "not signed by the gateway")
    if abs(time.time() - int(at)) > 300:
        raise HTTPException(401, "signed too long ago")
    return body


async def contest(request: Request) -> JSONResponse:
    await body_of_gateway(request)
    answer = {"id": request.path_params["id"], "leader": "ann", "asked": next(numbers)}
    return JSONResponse(answer, headers={"cache-control": "max-age=5"})


async def commands(request: Request) -> JSONResponse:
    await body_of_gateway(request)
    match await request.json():
        case {"topic": "contest-chat", "action": "SEND_MESSAGE", "data": {"text": str(text)}, "user": user}:
            return JSONResponse({"id": next(numbers), "from": user, "text": text})
        case {"topic": "contest-chat", "action": "SEND_MESSAGE"}:
            return JSONResponse({"error": {"message": "text is missing"}}, 400)
    return JSONResponse({"error": {"message": "there is no such command"}}, 501)


app = Starlette(routes=[Route("/contests/{id}", contest), Route("/commands", commands, methods=["POST"])])

"""The back end of the chat in docs/tutorial: login, rooms, messages, and the answers for the gateway."""

import hashlib
import hmac
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import jwt
from fastapi import Body, Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

from gateway import tokens
from gateway.contrib.fastapi import GatewayPublisher, publisher_lifespan

HERE = Path(__file__).parent
SECRET = os.environ["GATEWAY_JWT_SECRET"]  # as on the nodes
BACKEND_SECRET = os.environ["GATEWAY_BACKEND_SECRET"].encode()  # as on the nodes
SOCKETS = os.environ.get("GATEWAY_SOCKETS", "ws://localhost:8080/ws ws://localhost:8081/ws")
MEMBERS: dict[str, set[str]] = defaultdict(set)  # the members of each room; your database

app = FastAPI(lifespan=publisher_lifespan(os.environ["REDIS_URL"]))


# ---- chapter 1: login


def current_user(login: Annotated[str, Cookie()] = "") -> str:
    """The user of the cookie `login`."""
    try:
        return str(jwt.decode(login, SECRET, algorithms=["HS256"])["wallet_address"])  # the claim of tokens.issue
    except jwt.InvalidTokenError:
        raise HTTPException(401, "log in first") from None


User = Annotated[str, Depends(current_user)]


@app.post("/login")
def log_in(name: Annotated[str, Body(embed=True, pattern=r"^\w{1,30}$")], response: Response) -> None:
    """Log in as `name`; a real application asks for a password."""
    response.set_cookie("login", tokens.issue(SECRET, user=name, seconds=86400), httponly=True, samesite="lax")


@app.get("/gateway-token", response_class=PlainTextResponse)
def gateway_token(user: User) -> str:
    """The token with which the page logs in at the gateway."""
    return tokens.issue(SECRET, user=user, seconds=900)


# ---- chapter 2: rooms


@app.put("/rooms/{room}/members/me")
def join(room: str, user: User) -> None:
    """Become a member of the room."""
    MEMBERS[room].add(user)


@app.post("/permissions")
async def permissions(request: Request) -> dict[str, Any]:
    """Which of the topics the user may subscribe to. Only the gateway asks: it signs the question."""
    fields = dict(field.split("=", 1) for field in request.headers.get("gateway-signature", "t=0,v1=").split(","))
    signed = f"{fields['t']}.POST.{request.url.path}.".encode() + await request.body()
    expected = hmac.new(BACKEND_SECRET, signed, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(fields["v1"], expected) or abs(time.time() - int(fields["t"])) > 300:
        raise HTTPException(401)
    asked = await request.json()
    return {"allowed": [topic for topic in asked["topics"] if asked["user"] in MEMBERS[topic.removeprefix("room:")]]}


# ---- chapter 3: messages


@app.post("/rooms/{room}/messages")
async def write(
    room: str,
    text: Annotated[str, Body(embed=True, min_length=1, max_length=500)],
    user: User,
    gateway: GatewayPublisher,
) -> None:
    """Write a message: your code checks and stores it; then it is published."""
    if user not in MEMBERS[room]:
        raise HTTPException(403, "join the room first")
    await gateway.publish(f"room:{room}", {"user": user, "text": text})


# ---- the page


@app.get("/")
def page() -> HTMLResponse:
    """The page, with the addresses of the gateway."""
    return HTMLResponse((HERE / "index.html").read_text().replace("SOCKETS", SOCKETS))


@app.get("/app.js")
def script() -> FileResponse:
    """The bundled script: `npm run build` makes it."""
    return FileResponse(os.environ.get("SCRIPT", HERE / "app.js"))

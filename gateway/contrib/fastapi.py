"""FastAPI and Starlette: one publisher for the application, opened and closed with it.

app = FastAPI(lifespan=publisher_lifespan(os.environ["REDIS_URL"]))

@app.post("/orders")
async def create(order: Order, gateway: GatewayPublisher) -> None:
    await gateway.publish("orders", order.model_dump(mode="json"))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from gateway.publisher import Publisher

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]


def publisher_lifespan(url: str, **options: Any) -> Lifespan:
    """A lifespan that opens a publisher on the Redis at `url` while the application runs.

    To combine it with a lifespan of your own, enter it there and return its state with yours:

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
            async with publisher_lifespan(url)(app) as state, database() as pool:
                yield {**state, "pool": pool}

    Args:
        url: The URL of Redis, as the nodes have it.
        **options: Passed to `Publisher`.
    """

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with Publisher(url, **options) as publisher:
            yield {"gateway_publisher": publisher}

    return lifespan


def get_publisher(connection: HTTPConnection) -> Publisher:
    """The publisher of the application, as a dependency of requests and WebSockets.

    Raises:
        RuntimeError: The application does not use `publisher_lifespan`.
    """
    publisher: Publisher | None = getattr(connection.state, "gateway_publisher", None)
    if publisher is None:
        raise RuntimeError("there is no publisher: use FastAPI(lifespan=publisher_lifespan(url))")
    return publisher


GatewayPublisher = Annotated[Publisher, Depends(get_publisher)]

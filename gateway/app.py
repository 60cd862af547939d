"""The composition root: builds a Starlette application and its node from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette

from gateway.core import topic_rules
from gateway.http import centrifugo_streams, fast_publish, health, pages, streams, websocket
from gateway.http.api import resource, router
from gateway.http.centrifugo_api import router as centrifugo_router
from gateway.http.middleware import SecurityMiddleware
from gateway.logging import logger
from gateway.node import configuration
from gateway.node.node import Node
from gateway.settings import Settings


def create_app(settings: Settings, read_settings: Callable[[], Settings] | None = None) -> Starlette:
    """The application of one node, which is `app.state.node` and runs during the lifespan.

    `read_settings` reads the settings again for a reload; None: a reload reads only the files that `settings` names.
    """
    read = read_settings or (lambda: settings)
    node = Node(settings, configuration.read(settings), lambda: configuration.read(read()))

    @asynccontextmanager
    async def lifespan(
        _app: Starlette,
    ) -> AsyncIterator[dict[str, Any]]:
        for warning in topic_rules.left_open(node.rules, configuration.load_rules("")):
            logger().warning(warning)
        async with node.lifespan():
            yield {
                "admission": node.admission,
                "handshakes": websocket.WebSocketPolicy(node),
                "fast_path": fast_publish.create(node),
                "compression": settings.compression,
            }

    # They are compared in this order: the path of POST /api/publish, which is asked most, is the first.
    routes = [
        *(centrifugo_router.ROUTES if settings.centrifugo else ()),
        *router.ROUTES[:1],
        *streams.ROUTES,
        *(centrifugo_streams.ROUTES if settings.centrifugo else ()),
        *health.ROUTES,
        *websocket.ROUTES,
        *router.ROUTES[1:],
        *pages.ROUTES,
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=resource.EXCEPTION_HANDLERS)
    app.state.node = node
    # Outermost, so that also what Starlette's own error handling answers passes it.
    app.middleware_stack = SecurityMiddleware(app.build_middleware_stack(), settings.hosts)
    return app

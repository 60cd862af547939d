"""The composition root: builds a Starlette application and its node from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from gateway.core import topic_rules
from gateway.core.topic_rules import Need, Rule, RulesError, TopicRules
from gateway.http import centrifugo_streams, fast_publish, health, pages, streams, websocket
from gateway.http.api import resource, router
from gateway.http.centrifugo_api import router as centrifugo_router
from gateway.http.middleware import SecurityMiddleware
from gateway.logging import logger
from gateway.node.node import Node
from gateway.settings import Settings


def create_app(settings: Settings) -> Starlette:
    """The application of one node, which is `app.state.node` and runs during the lifespan."""
    default = Rule(pattern="*", subscribe=Need(settings.default_subscribe), publish=Need(settings.default_publish))
    rules = load_rules(settings.topics, default)
    node = Node(settings, rules)

    @asynccontextmanager
    async def lifespan(
        _app: Starlette,
    ) -> AsyncIterator[dict[str, Any]]:
        for warning in topic_rules.left_open(rules, load_rules("")):
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


def load_rules(file: str, default: Rule = topic_rules.ANY_OTHER) -> TopicRules:
    """Read the topic rules in `file`, or the default file of the package if it is empty; `default` applies elsewhere.

    Raises:
        RulesError: The file cannot be read or is invalid.
    """
    if not file:
        return topic_rules.parse(resources.files("gateway").joinpath("topics.toml").read_text(), "topics.toml", default)
    try:
        return topic_rules.parse(Path(file).read_text(), file, default)
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"GATEWAY_TOPICS: {file} cannot be read: {error}") from None

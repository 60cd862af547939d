"""The checks of `gateway check`: the local settings, the API, Redis and every node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.cli import redis_checks
from gateway.cli.api_client import ApiClient, ApiClientError
from gateway.settings import Settings, SettingsError


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its result."""

    check: str
    ok: bool | None  # None: it could not be made
    found: str
    todo: str = ""  # the remedy


KEY: Final = Check("key", True, "the nodes accept it")


def checks(api_client: ApiClient, environ: Mapping[str, str]) -> list[Check]:
    """Make all checks. `environ`: the environment variables of this process."""
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        here = [Check("settings", False, str(error), "correct or unset it: no node starts with it")]
    else:
        here = [Check("settings", True, "the GATEWAY_ variables here are valid")]
        if "GATEWAY_REDIS_URL" in environ:  # the default URL may not be the cluster's
            here += asyncio.run(_redis_from_here(settings))
    return [*here, *_by_the_api(api_client)]


def _by_the_api(api_client: ApiClient) -> list[Check]:
    api = None
    try:
        api = Check("API", True, f"{api_client.url} answers, version {api_client.version()}")
        nodes = api_client.nodes()["nodes"]
    except ApiClientError as error:
        match error.status:
            case 401 | 403 if api is not None:
                return [api, Check("key", False, str(error)), *_skipped("Redis", "nodes")]
            case 503 if api is not None:
                return [api, KEY, Check("Redis", False, str(error)), *_skipped("nodes")]
        return [Check("API", False, str(error)), *_skipped("key", "Redis", "nodes")]
    found = [_node(node) for node in nodes]
    if not found:
        found = [Check("nodes", False, "none is registered", "check again in two seconds, then read their logs")]
    return [api, KEY, Check("Redis", True, "the nodes can reach it"), *found, *_rules(nodes)]


def _skipped(*names: str) -> list[Check]:
    return [Check(name, None, "") for name in names]


def _rules(nodes: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Check that all nodes have the same topic rules. No check if fewer than two nodes report theirs."""
    by_digest: dict[str, list[str]] = {}
    for node in nodes:
        if node.get("rules"):
            by_digest.setdefault(node["rules"], []).append(node["name"])
    if sum(map(len, by_digest.values())) < 2:
        return []
    if len(by_digest) == 1:
        return [Check("topic rules", True, "the same on all nodes")]
    differ = "; ".join(f"{', '.join(names)}: {digest}" for digest, names in sorted(by_digest.items()))
    return [Check("topic rules", False, f"they differ: {differ}", "restart the nodes with the old GATEWAY_TOPICS")]


def _node(node: Mapping[str, Any]) -> Check:
    state = state_of(node)
    todo = {"ready": "", "draining": "it exits soon; check again"}.get(state, f"see http://{node['address']}/readyz")
    about = f"{state}, {node['clients']} clients, version {node['version']}"
    return Check(f"node {node['id']}", state == "ready", about, todo)


async def _redis_from_here(settings: Settings) -> list[Check]:
    # Imported here, because loading redis takes longer than everything that the other commands need.
    from gateway.broker import topology
    from gateway.broker.client import RedisClient, Unavailable
    from gateway.metrics import Metrics

    url = topology.describe(settings.redis_url)
    redis = RedisClient(
        settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name="gateway-check", metrics=Metrics()
    )
    found: list[Check] = []
    try:
        await redis.execute("PING")
        await redis.refresh_topology()
        for server in redis.slot_map.servers:
            label = f" {server}" if redis.sharded else ""
            made = await redis_checks.check_server(redis, server, settings)
            found += [Check(f"Redis{label} {one.about}", not one.todo, one.found, one.todo) for one in made]
    except Unavailable as error:
        return [Check("Redis from here", False, f"{url}: {error}", "start it, or correct GATEWAY_REDIS_URL"), *found]
    finally:
        await redis.close()
    return [Check("Redis from here", True, f"{url} answers"), *found]


def state_of(node: Mapping[str, Any]) -> str:
    """The state of a node's row in the API: ready, draining or not ready."""
    return "draining" if node["draining"] else "ready" if node["ready"] else "not ready"

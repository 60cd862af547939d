"""Whether a cluster is well, as questions with answers: the settings here, the API, Redis, every node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.cli.remote import Remote, RemoteError
from gateway.settings import Settings, SettingsError


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `ok` is None where it could not be asked."""

    check: str
    ok: bool | None
    found: str
    todo: str = ""


KEY: Final = Check("key", True, "is the nodes' own")


def checks(remote: Remote, environ: Mapping[str, str]) -> list[Check]:
    """All checks, made now; `environ`: the variables of a node, or of whoever asks."""
    try:
        settings = Settings.from_env(environ)
    except SettingsError as error:
        here = [Check("settings", False, str(error), "set it right or unset it: no node would start")]
    else:
        here = [Check("settings", True, "the GATEWAY_ variables here are understood")]
        if "GATEWAY_REDIS_URL" in environ:  # else the default, which need not be the cluster's
            here.append(asyncio.run(_redis_from_here(settings)))
    return [*here, *_by_the_api(remote)]


def _by_the_api(remote: Remote) -> list[Check]:
    api = None
    try:
        api = Check("API", True, f"{remote.url} answers, version {remote.version()}")
        nodes = remote.nodes()["nodes"]
    except RemoteError as error:
        match error.status:
            case 401 | 403 if api is not None:
                return [api, Check("key", False, str(error)), *_unasked("Redis", "nodes")]
            case 503 if api is not None:
                return [api, KEY, Check("Redis", False, str(error)), *_unasked("nodes")]
        return [Check("API", False, str(error)), *_unasked("key", "Redis", "nodes")]
    found = [_node(node) for node in nodes]
    if not found:
        found = [Check("nodes", False, "none is registered", "ask again in two seconds, then read their logs")]
    return [api, KEY, Check("Redis", True, "answers the nodes"), *found, *_rules(nodes)]


def _unasked(*names: str) -> list[Check]:
    return [Check(name, None, "") for name in names]


def _rules(nodes: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Whether all nodes have the same topic rules; nothing where fewer than two say."""
    by_digest: dict[str, list[str]] = {}
    for node in nodes:
        if node.get("rules"):
            by_digest.setdefault(node["rules"], []).append(node["name"])
    if sum(map(len, by_digest.values())) < 2:
        return []
    if len(by_digest) == 1:
        return [Check("topic rules", True, "are the same on all nodes")]
    differ = "; ".join(f"{', '.join(names)}: {digest}" for digest, names in sorted(by_digest.items()))
    return [Check("topic rules", False, f"differ: {differ}", "restart the nodes that have the old GATEWAY_TOPICS")]


def _node(node: Mapping[str, Any]) -> Check:
    state = state_of(node)
    todo = {"ready": "", "draining": "it leaves; ask again"}.get(state, f"http://{node['address']}/readyz says why")
    about = f"{state}, {node['clients']} clients, version {node['version']}"
    return Check(f"node {node['id']}", state == "ready", about, todo)


async def _redis_from_here(settings: Settings) -> Check:
    # Here, because redis takes longer to load than all that the other commands need.
    from gateway.cluster import servers
    from gateway.cluster.link import Link, Unavailable
    from gateway.metrics import Metrics

    url = servers.describe(settings.redis_url)
    link = Link(
        settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name="gateway-check", metrics=Metrics()
    )
    try:
        await link.ask("PING")
    except Unavailable as error:
        return Check("Redis from here", False, f"{url}: {error}", "start it, or set GATEWAY_REDIS_URL right")
    finally:
        await link.close()
    return Check("Redis from here", True, f"{url} answers")


def state_of(node: Mapping[str, Any]) -> str:
    """ready, draining or not ready: a node's row in the API, in a word."""
    return "draining" if node["draining"] else "ready" if node["ready"] else "not ready"

"""Where samples run: a node behind HAProxy, whose addresses and keys take the place of those in the samples."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.kit.load_balancer import LoadBalancer
from tests.kit.node import API_KEY, JWT_SECRET, Node, token
from tests.kit.process import ROOT, clean_environment
from tests.kit.redis import Redis
from tests.kit.waiting import until

RULES: Final = Path(__file__).parent / "topics.toml"
MEMORY: Final = {"maxmemory": "256mb", "maxmemory-policy": "noeviction"}  # as `gateway check` asks for
USER: Final = "ann"  # whose token pages get


class Place(NamedTuple):
    """A running node, its Redis, and HAProxy before it."""

    redis: Redis
    node: Node
    front: LoadBalancer

    def localized(self, text: str) -> str:
        """The sample with the addresses of this place."""
        for pattern, address in {
            r"(127\.0\.0\.1|localhost):8404": self.front.admin.partition("//")[2],
            r"(127\.0\.0\.1|localhost):8080": self.front.url.partition("//")[2],
            r"redis://127\.0\.0\.1:6379/0": self.redis.url,
        }.items():
            text = re.sub(pattern, address, text)
        return text

    def environment(self) -> dict[str, str]:
        """What a reader has set who follows the pages."""
        return clean_environment() | {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "GATEWAY_URL": self.front.admin, "GATEWAY_API_KEY": API_KEY, "GATEWAY_JWT_SECRET": JWT_SECRET,
            "GATEWAY_REDIS_URL": self.redis.url, "REDIS_URL": self.redis.url, "NODE": self.node.address,
            "TOKEN": token(USER), "ADMIN_TOKEN": token("root", "admin"),
        }  # fmt: skip


@contextmanager
def running(folder: Path) -> Iterator[Place]:
    """A place of one node, whose state is in `folder`."""
    with (
        Redis(folder, aof=True, more=MEMORY) as redis,
        Node("n1", folder, redis, topics=RULES, trusted_proxies="127.0.0.1") as node,
    ):
        until(node.ready, 30, "the node is ready")
        with LoadBalancer([node], folder, RL_CONN=10_000, RL_REQ=10_000, RL_CUR=1_000) as front:
            yield Place(redis, node, front)

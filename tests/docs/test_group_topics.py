"""The back end of docs/how-to/group-topics.md, asked by a real node."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.client import Gateway, Refused
from tests.docs.samples import SAMPLES
from tests.kit.node import JWT_SECRET, Node, token
from tests.kit.process import Process, clean_environment, free_port
from tests.kit.redis import Redis
from tests.kit.waiting import until

PAGE = [sample.text for sample in SAMPLES if sample.page.endswith("group-topics.md")]
SECRET = "a secret between the node and its back end"


async def test_members_subscribe_and_others_do_not(folder: Path, redis: Redis) -> None:
    [rules] = [text for text in PAGE if '"ask"' in text]
    [back_end] = [text for text in PAGE if "/permissions" in text]
    (folder / "topics.toml").write_text(rules)
    (folder / "back_end.py").write_text(back_end)
    port = free_port()
    server = Process(
        "back end", [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), "back_end:app", "--port", str(port)],
        folder / "back_end.log", clean_environment() | {"GATEWAY_BACKEND_SECRET": SECRET},
    )  # fmt: skip
    try:
        server.spawn()
        server.until_listens(port)
        settings = {"backend_url": f"http://127.0.0.1:{port}", "backend_secret": SECRET}
        with Node("n1", folder, redis, topics=folder / "topics.toml", **settings) as node:
            until(node.ready, 30, "the node is ready")
            async with Gateway(node.ws, token=token("ann")) as ann, Gateway(node.ws, token=token("bob")) as bob:
                await ann.subscribe("group:7")
                await ann.publish("group:7", "hello")
                with pytest.raises(Refused, match="back end does not allow"):
                    await bob.subscribe("group:7")
                with pytest.raises(Refused, match="subscribe to it first"):
                    await bob.publish("group:7", "hello")
    finally:
        server.close()


async def test_a_subscription_token_of_the_page_is_accepted(folder: Path, redis: Redis) -> None:
    from gateway import tokens
    from tests.kit.client import Client

    [rules] = [text for text in PAGE if 'subscribe = "token"' in text]
    (folder / "topics.toml").write_text(rules)
    with Node("n1", folder, redis, topics=folder / "topics.toml") as node:
        until(node.ready, 30, "the node is ready")
        client = await Client.connect(node, user="ann")
        granted = tokens.issue_for_topics(JWT_SECRET, ["group:7"], user="ann", seconds=3600)
        subscribe = {"type": "SUBSCRIBE", "topics": ["group:7"]}
        assert (await client.call(**subscribe))["code"] == 4403
        assert (await client.call(**subscribe, tokens=[granted]))["status"] == "success"
        await client.leave()

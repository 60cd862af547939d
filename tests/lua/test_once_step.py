"""publish_once: an idempotency key on a topic without history."""

from __future__ import annotations

import pytest

from gateway.broker.keys import IDEMPOTENCY_MS, Keys
from tests.lua.steps import Steps

TOPIC = "chat"


@pytest.mark.parametrize("step", ["publish_once", "publish_snapshot"])
def test_the_same_key_publishes_once_until_it_expires(steps: Steps, keys: Keys, step: str) -> None:
    answer = keys.publish_answer(TOPIC, "k")
    for _ in range(2):
        if step == "publish_once":
            steps.call(step, [answer], "ch", "text", IDEMPOTENCY_MS, "PUBLISH")
        else:
            arguments = ("ch", "h", "text", "", 0, 0, "PUBLISH", 1000, IDEMPOTENCY_MS)
            steps.call(step, [keys.snapshot(TOPIC), answer], *arguments)
    assert len(steps.published()) == 1
    assert steps.hash(answer) == {"published": "1"}
    assert 0 < steps.redis.pttl(answer) <= IDEMPOTENCY_MS


def test_another_key_publishes_and_a_repeat_changes_no_snapshot(steps: Steps, keys: Keys) -> None:
    def publish(key: str, text: str) -> int:
        arguments = ("ch", "h", text, "", 0, 0, "PUBLISH", 1000, IDEMPOTENCY_MS)
        return int(steps.call("publish_snapshot", [keys.snapshot(TOPIC), keys.publish_answer(TOPIC, key)], *arguments))

    assert publish("a", "1") > 0
    assert publish("b", "2") > 0
    assert publish("a", "3") == 0
    assert steps.hash(keys.snapshot(TOPIC))["m"] == "2"
    assert len(steps.published()) == 2

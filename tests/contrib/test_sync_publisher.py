"""SyncPublisher on a real Redis: threads, forks, outages, close."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway.dev import DevCluster
from gateway.publisher import ProtocolError, PublicationTooLarge, Unavailable
from gateway.sync_publisher import SyncPublisher

Kept = Callable[[str], list[Any]]

FORKS = """
import os, sys, threading
from gateway.sync_publisher import SyncPublisher

url, topic = sys.argv[1:]
publisher = SyncPublisher(url)
publisher.publish(topic, "parent before")
stop = threading.Event()
busy = threading.Thread(target=lambda: [publisher.publish(topic, "thread") for _ in iter(stop.is_set, True)])
busy.start()
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        publisher.publish(topic, f"child {number}")
        publisher.close()
        os._exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
busy.join()
publisher.publish(topic, "parent after")
publisher.close()
sys.exit(max(codes))
"""


@pytest.fixture
def publisher(live_gateway: DevCluster) -> Any:
    with SyncPublisher(live_gateway.redis_url) as made:
        yield made


def test_threads_publish_at_the_same_time(publisher: SyncPublisher, topic: str, kept: Kept) -> None:
    with ThreadPoolExecutor(8) as threads:
        positions = list(threads.map(lambda number: publisher.publish(topic, number), range(100)))
    assert sorted(position.offset for position in positions if position is not None) == list(range(1, 101))
    assert sorted(message["data"] for message in kept(topic)) == list(range(100))
    assert len([thread for thread in threading.enumerate() if thread.name == "gateway-publisher"]) == 1


def test_messages_are_submitted_without_waiting_in_their_order(
    publisher: SyncPublisher, topic: str, kept: Kept
) -> None:
    data = {"number": 0}
    futures = []
    for number in range(100):
        data["number"] = number
        futures.append(publisher.submit([{"topic": topic, "data": data}]))
    for future in futures:
        future.result(30)
    assert [message["data"]["number"] for message in kept(topic)] == list(range(100))


def test_each_forked_process_publishes_for_itself(live_gateway: DevCluster, topic: str, kept: Kept) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, live_gateway.redis_url, topic], timeout=60, check=False
    )
    assert done.returncode == 0
    data = [message["data"] for message in kept(topic)]
    assert data[0] == "parent before" and data[-1] == "parent after"
    assert sorted(one for one in data if one.startswith("child")) == ["child 0", "child 1", "child 2"]


def test_a_publish_whose_answer_came_too_late_is_published_once(
    live_gateway: DevCluster, topic: str, kept: Kept
) -> None:
    redis = live_gateway.pid("redis")
    with SyncPublisher(live_gateway.redis_url, timeout_seconds=0.3, retry_seconds=20) as publisher:
        publisher.publish(topic, "first")
        os.kill(redis, signal.SIGSTOP)
        try:
            late = publisher.submit([{"topic": topic, "data": "late"}])
            time.sleep(1.0)  # several attempts end without an answer; Redis has at least one of them in its socket
            assert not late.done()
        finally:
            os.kill(redis, signal.SIGCONT)
        [position] = late.result(30)
    assert position is not None and position.offset == 2
    assert [message["data"] for message in kept(topic)] == ["first", "late"]


def test_the_error_names_a_missing_redis_and_a_plain_topic_is_not_retried(tmp_path: Any) -> None:
    with (
        SyncPublisher(f"unix://{tmp_path}/none", retry_seconds=0.2) as publisher,
        pytest.raises(Unavailable, match="none"),
    ):
        publisher.publish("plain", 1)


def test_invalid_messages_are_refused_before_anything_is_sent(publisher: SyncPublisher, topic: str) -> None:
    with pytest.raises(ProtocolError, match="topic must be"):
        publisher.submit([{"topic": "not a topic", "data": 1}])
    with pytest.raises(ProtocolError, match="cannot be written as JSON"):
        publisher.publish(topic, object())
    with pytest.raises(ProtocolError, match="reserved"):
        publisher.publish("system", 1)
    with pytest.raises(PublicationTooLarge):
        publisher.publish(topic, "x" * (1 << 20))


def test_a_closed_publisher_opens_again(publisher: SyncPublisher, topic: str, kept: Kept) -> None:
    publisher.publish(topic, 1)
    publisher.close()
    publisher.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "gateway-publisher"]
    publisher.publish(topic, 2)
    assert [message["data"] for message in kept(topic)] == [1, 2]

"""gateway.publisher: its retries, on a fake connection that fails as the test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.broker.failures import Unavailable
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.urls import UrlError
from gateway.publisher import Publisher
from tests.unit.virtual_time import in_virtual_time


class Messages:
    """A `MessagePublisher` whose first publishes fail; topics that begin with "kept" have history."""

    def __init__(self, failures: int, *, rules_failures: int = 0) -> None:
        self.failures = failures
        self.rules_failures = rules_failures
        self.published: list[list[Publication]] = []  # all attempts

    async def with_keys(self, publications: Sequence[Publication]) -> list[Publication]:
        if self.rules_failures > 0:
            self.rules_failures -= 1
            raise Unavailable("no rules")
        return [one._replace(key="made") if one.topic.startswith("kept") else one for one in publications]

    def is_repeatable(self, publication: Publication) -> bool:
        return publication.key is not None

    async def publish(self, publications: Sequence[Publication]) -> list[Position | None]:
        self.published.append(list(publications))
        if len(self.published) <= self.failures:
            raise Unavailable("away")
        return [Position("e", 1, 1) if one.key else None for one in publications]


def publisher(messages: Messages, retry_seconds: float = 5.0) -> Publisher:
    made = Publisher("redis://localhost", retry_seconds=retry_seconds)
    made._publisher = messages  # type: ignore[assignment]
    return made


@in_virtual_time
async def test_a_retry_has_the_key_of_the_first_attempt() -> None:
    messages = Messages(failures=3)
    assert await publisher(messages).publish("kept", 1) == Position("e", 1, 1)
    assert [[one.key for one in attempt] for attempt in messages.published] == [["made"]] * 4


@in_virtual_time
async def test_retries_end_at_the_deadline_with_the_last_error() -> None:
    messages, began = Messages(failures=10_000), asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match="away"):
        await publisher(messages, retry_seconds=3).publish("kept", 1)
    assert 1 < asyncio.get_running_loop().time() - began < 3
    assert 4 < len(messages.published) < 100


@in_virtual_time
@pytest.mark.parametrize("topics", [["plain"], ["kept", "plain"]])
async def test_what_could_be_published_twice_is_not_retried(topics: list[str]) -> None:
    messages = Messages(failures=1)
    with pytest.raises(Unavailable):
        await publisher(messages).publish_all([{"topic": topic, "data": 1} for topic in topics])
    assert len(messages.published) == 1


@in_virtual_time
async def test_while_nothing_was_sent_any_message_is_retried() -> None:
    messages = Messages(failures=0, rules_failures=2)
    assert await publisher(messages).publish("plain", 1) is None
    assert len(messages.published) == 1


@in_virtual_time
async def test_without_retries_no_key_is_made() -> None:
    messages = Messages(failures=1)
    with pytest.raises(Unavailable):
        await publisher(messages, retry_seconds=0).publish("kept", 1)
    assert [[one.key for one in attempt] for attempt in messages.published] == [[None]]


def test_a_wrong_url_is_refused_at_once() -> None:
    with pytest.raises(UrlError):
        Publisher("http://localhost")


def test_an_unknown_name_is_an_attribute_error() -> None:
    import gateway.publisher as module

    missing: Any = "SyncPublishers"
    with pytest.raises(AttributeError, match="SyncPublishers"):
        getattr(module, missing)

"""gateway.contrib.django with the real Django and Channels."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import override_settings

from gateway.contrib import django as contrib
from gateway.contrib.django import publish, publish_on_commit
from gateway.dev import DevCluster
from gateway.publisher import ProtocolError

Kept = Callable[[str], list[Any]]

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["gateway.contrib.django"],
    CHANNEL_LAYERS={"default": {"BACKEND": "gateway.contrib.django.channels.GatewayChannelLayer"}},
    DEBUG=True,
)
django.setup()


@pytest.fixture(autouse=True)
def _settings(live_gateway: DevCluster) -> Iterator[None]:
    with override_settings(GATEWAY={"REDIS_URL": live_gateway.redis_url}):
        yield
    contrib.reset()


def data(messages: list[Any]) -> list[Any]:
    return [message["data"] for message in messages]


# ---- publishing


def test_a_message_is_published_when_the_transaction_commits(topic: str, kept: Kept) -> None:
    order = {"state": "new"}
    with transaction.atomic():
        publish_on_commit(topic, order, action="CREATED")
        order["state"] = "changed later"
        assert kept(topic) == []
    [message] = kept(topic)
    assert (message["data"], message["action"]) == ({"state": "new"}, "CREATED")


def test_nothing_is_published_if_the_transaction_is_rolled_back(topic: str, kept: Kept) -> None:
    with transaction.atomic():
        publish_on_commit(topic, 1)
        transaction.set_rollback(True)
    publish_on_commit(topic, "without a transaction")
    assert data(kept(topic)) == ["without a transaction"]


def test_an_invalid_message_is_refused_before_the_commit(topic: str) -> None:
    with transaction.atomic(), pytest.raises(ProtocolError, match="cannot be written as JSON"):
        publish_on_commit(topic, object())


def test_a_failure_after_the_commit_is_logged_or_raised(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with override_settings(GATEWAY={"REDIS_URL": f"unix://{tmp_path}/none", "RETRY_SECONDS": 0}):
        with caplog.at_level(logging.ERROR), transaction.atomic():
            publish_on_commit("plain", 1)
        assert "Error calling" in caplog.text
        with pytest.raises(contrib.Unavailable), transaction.atomic():
            publish_on_commit("plain", 1, robust=False)


def test_publish_does_not_wait_for_the_transaction(topic: str, kept: Kept) -> None:
    with transaction.atomic():
        position = publish(topic, 1)
        assert position is not None and position.offset == 1
        assert data(kept(topic)) == [1]


# ---- the management command


def test_the_command_publishes(topic: str, kept: Kept) -> None:
    out = io.StringIO()
    call_command("gateway_publish", topic, '{"a": 1}', action="TEST", stdout=out)
    assert out.getvalue() == f"Published on {topic} at offset 1.\n"
    assert data(kept(topic)) == [{"a": 1}]


@pytest.mark.parametrize(
    ("topic", "text", "message"), [("a", "{", "DATA is not JSON"), ("not a topic", "1", "topic must be")]
)
def test_the_command_reports_errors(topic: str, text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        call_command("gateway_publish", topic, text)


# ---- the system check


@pytest.mark.parametrize(
    ("configured", "debug", "found"),
    [
        (None, True, ["gateway.E001"]),
        ({}, True, ["gateway.E001"]),
        ({"REDIS_URL": "http://localhost"}, True, ["gateway.E003"]),
        ({"REDIS_URL": "redis://localhost", "REDIS": 1}, True, ["gateway.E002"]),
        ({"REDIS_URL": "redis://localhost"}, True, []),
        ({"REDIS_URL": "redis://localhost"}, False, ["gateway.W001"]),
        ({"REDIS_URL": "redis://publisher:secret@localhost"}, False, []),
    ],
)
def test_the_system_check_finds_faults_of_the_settings(configured: Any, debug: bool, found: list[str]) -> None:
    with override_settings(GATEWAY=configured, DEBUG=debug):
        assert [fault.id for fault in run_checks() if fault.id.startswith("gateway.")] == found


# ---- the channel layer


async def test_group_send_publishes_on_the_topic_of_the_group(topic: str, kept: Kept) -> None:
    await get_channel_layer().group_send(topic, {"type": "chat.message", "text": "hello"})
    [message] = kept(topic)
    assert (message["action"], message["data"]) == ("chat.message", {"text": "hello"})


def test_group_send_works_in_a_view_without_an_event_loop(topic: str, kept: Kept) -> None:
    for number in range(3):
        async_to_sync(get_channel_layer().group_send)(topic, {"type": "n", "number": number})
    assert data(kept(topic)) == [{"number": number} for number in range(3)]


async def test_the_layer_names_what_it_does_not_support() -> None:
    layer = get_channel_layer()
    with pytest.raises(NotImplementedError, match="has no group_add: clients subscribe themselves"):
        await layer.group_add("a", "b")
    for refused in (layer.send("a", {}), layer.receive("a"), layer.new_channel(), layer.group_discard("a", "b")):
        with pytest.raises(NotImplementedError, match="the gateway's channel layer has no "):
            await refused
    with pytest.raises(ProtocolError, match="topic must be"):
        await layer.group_send("not a group", {"type": "x"})

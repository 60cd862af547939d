"""Django: publish when a transaction commits.

Settings:

    INSTALLED_APPS = [..., "gateway.contrib.django"]
    GATEWAY = {"REDIS_URL": "redis://127.0.0.1:6379/0"}

In a view, a signal handler or a task:

    publish_on_commit("orders", {"id": order.id, "state": order.state})

docs/how-to/web-frameworks.md describes the settings, the management command and the channel layer.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from gateway.publisher import Unavailable, read_messages
from gateway.sync_publisher import SyncPublisher

if TYPE_CHECKING:
    from gateway.core.position import Position

# The keys of the setting GATEWAY, and the arguments of `SyncPublisher` that they set.
OPTIONS: Final = {
    "REDIS_URL": "url", "NAMESPACE": "namespace",
    "TIMEOUT_SECONDS": "timeout_seconds", "RETRY_SECONDS": "retry_seconds",
}  # fmt: skip

_lock = Lock()
_publisher: SyncPublisher | None = None


def publish(topic: str, data: Any, **more: Any) -> Position | None:
    """Publish now, even if the transaction is rolled back; `more` and errors: as for `SyncPublisher.publish`."""
    return get_publisher().publish(topic, data, **more)


def publish_on_commit(topic: str, data: Any, *, using: str | None = None, robust: bool = True, **more: Any) -> None:
    """Publish when the current transaction commits, or now if there is none. If it is rolled back, nothing happens.

    Args:
        topic: The topic.
        data: Any JSON. It is copied now, so later changes have no effect.
        using: The alias of the database; None: the default one.
        robust: Log a failure to publish (logger ``django.db.backends.base``) instead of raising it: the transaction is
            already committed. Without a transaction a failure is handled in the same way.
        **more: Fields of the HTTP API: ``action``, ``to``, ``idempotencyKey`` …

    Raises:
        ProtocolError: The message is invalid; raised now, not at the commit.
    """
    from django.db import transaction

    from gateway.core.publication import copied

    publications = [copied(one) for one in read_messages([{"topic": topic, "data": data, **more}])]

    def publish_now() -> None:  # Django logs its name
        get_publisher().publish_publications(publications)

    transaction.on_commit(publish_now, using=using, robust=robust)


def get_publisher() -> SyncPublisher:
    """The publisher of this process, as the setting GATEWAY describes it. It connects at its first use."""
    global _publisher
    with _lock:
        if _publisher is None:
            from django.conf import settings
            from django.core.exceptions import ImproperlyConfigured

            configured = getattr(settings, "GATEWAY", {})
            if "REDIS_URL" not in configured:
                raise ImproperlyConfigured('set GATEWAY = {"REDIS_URL": …} to the Redis of the gateway')
            _publisher = SyncPublisher(**{OPTIONS[name]: value for name, value in configured.items()})
        return _publisher


def reset() -> None:
    """Close the publisher of this process; the next use makes one from the current settings."""
    global _publisher
    with _lock:
        publisher, _publisher = _publisher, None
    if publisher is not None:
        publisher.close()


__all__ = ["Unavailable", "get_publisher", "publish", "publish_on_commit", "reset"]

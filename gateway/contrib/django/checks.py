"""The system check of the setting GATEWAY (`manage.py check`)."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning

from gateway.contrib.django import OPTIONS
from gateway.core.urls import UrlError, parse_redis


def check_settings(**_: Any) -> list[CheckMessage]:
    """The faults of the setting GATEWAY."""
    configured = getattr(settings, "GATEWAY", None)
    if not isinstance(configured, dict) or not configured.get("REDIS_URL"):
        return [
            Error(
                "GATEWAY has no REDIS_URL, so nothing can be published.",
                hint='Set GATEWAY = {"REDIS_URL": "redis://host:6379/0"} to the Redis of the gateway nodes.',
                id="gateway.E001",
            )
        ]
    found: list[CheckMessage] = [
        Error(f"GATEWAY has an unknown key {name!r}.", hint=f"Known: {', '.join(OPTIONS)}.", id="gateway.E002")
        for name in configured
        if name not in OPTIONS
    ]
    try:
        url = parse_redis(configured["REDIS_URL"])
    except UrlError as error:
        found.append(Error(f"GATEWAY['REDIS_URL'] cannot be used: {error}", id="gateway.E003"))
    else:
        if not settings.DEBUG and not url.password and url.kind != "unix":
            found.append(
                Warning(
                    "GATEWAY['REDIS_URL'] has no password.",
                    hint="A program that may write to Redis controls the gateway: use the user publisher of "
                    "deploy/redis/users.acl.",
                    id="gateway.W001",
                )
            )
    return found

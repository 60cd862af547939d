"""The Django application."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import register
from django.core.signals import setting_changed

from gateway.contrib import django as contrib
from gateway.contrib.django.checks import check_settings


class GatewayConfig(AppConfig):
    """Registers the system check, and follows changes of the settings in tests."""

    name = "gateway.contrib.django"
    label = "gateway"
    verbose_name = "WebSocket gateway"

    def ready(self) -> None:
        """Called by Django at its start."""
        register(check_settings)
        setting_changed.connect(_on_setting_changed)


def _on_setting_changed(*, setting: str, **_: Any) -> None:
    if setting == "GATEWAY":
        contrib.reset()

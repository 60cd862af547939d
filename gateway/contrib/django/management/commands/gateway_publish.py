"""`manage.py gateway_publish TOPIC JSON`: publish a message with the setting GATEWAY."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.contrib.django import publish
from gateway.publisher import ProtocolError, PublicationTooLarge, Unavailable


class Command(BaseCommand):
    """The command."""

    help = "Publishes a message on a topic, for example to see whether the settings are right."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("topic")
        parser.add_argument("data", help='JSON, for example \'{"text": "hello"}\'')
        parser.add_argument("--action", help="delivered beside the data")
        parser.add_argument("--user", help="only to clients of this user")

    def handle(self, *_: Any, topic: str, data: str, action: str | None, user: str | None, **__: Any) -> None:
        """Publish.

        Raises:
            CommandError: The message is invalid, or Redis is away.
        """
        try:
            value = json.loads(data)
        except ValueError as error:
            raise CommandError(f"DATA is not JSON: {error}") from None
        more: dict[str, Any] = {"action": action, "to": {"user": user} if user is not None else None}
        try:
            position = publish(topic, value, **{name: field for name, field in more.items() if field is not None})
        except (ProtocolError, PublicationTooLarge, Unavailable) as error:
            raise CommandError(str(error)) from None
        at = f" at offset {position.offset}" if position is not None else ""
        self.stdout.write(f"Published on {topic}{at}.")

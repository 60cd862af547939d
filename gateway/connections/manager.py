"""Opens and closes the connections of this node's clients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Final

from gateway import __version__
from gateway.connections.admission import Admission
from gateway.connections.command_handler import CommandHandler
from gateway.connections.open_connections import OpenConnections
from gateway.core import events, json_text
from gateway.core.identity import Identity
from gateway.core.session import Session
from gateway.core.session_rules import SessionRules, Verify
from gateway.delivery.subscriptions import Subscriptions
from gateway.logging import logger
from gateway.metrics import Metrics
from gateway.protocols.protocol import ClientProtocol
from gateway.settings import Settings
from gateway.transports.compression import Compressor
from gateway.transports.connection import ClientInfo, Connection

USER_AGENT_CHARACTERS: Final = 256

_RFC_CODES: Final = frozenset({1000, 1001, 1002, 1005, 1006, 1007, 1009, 1011, 1012})  # RFC 6455, 7.4.1


class ConnectionManager:
    """The owner of every open `Connection`; `commands` handles their messages. `now_ms`: the time in ms since 1970."""

    def __init__(
        self,
        settings: Settings,
        rules: SessionRules,
        open_connections: OpenConnections,
        subscriptions: Subscriptions,
        admission: Admission,
        commands: CommandHandler,
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        self.max_message_bytes = settings.max_message_bytes
        self.client_buffer_bytes = settings.client_buffer_bytes
        self.deflater = Compressor()
        self.limits = commands.limits
        # Attributes, not methods: a transport calls the part that does the work.
        self.compress = self.deflater.deflate
        self.buffer_grew, self.fragment_received = self.limits.buffer_grew, self.limits.count_fragment
        self.message_received, self.command_received = commands.message_received, commands.command_received
        self.control_frame_received = commands.control_frame_received
        self._settings = settings
        self._rules = rules
        self._open_connections = open_connections
        self._subscriptions = subscriptions
        self._admission = admission
        self._metrics = metrics
        self._opened = cache(metrics.opens.labels)  # by protocol
        self._now_ms = now_ms
        self._limits_about: Mapping[str, json_text.Json] = {
            "messageBytes": settings.max_message_bytes, "topics": settings.max_client_topics,
            "messagesPerSecond": settings.client_messages_per_second,
            "subscriptionsPerSecond": settings.client_subscriptions_per_second,
        }  # fmt: skip
        self._log = logger()

    def accept(
        self, connection: Connection, protocol: ClientProtocol, identity: Identity, ip: str, user_agent: str,
        verify: Verify | None = None,
    ) -> None:  # fmt: skip
        """Open a connection whose handshake was accepted; it receives the welcome once its channels are subscribed.

        `protocol`: what the client speaks; `verify`: replaces the usual check of tokens for this connection.
        """
        client_id = self._open_connections.new_id()
        # Many clients have the same user agent; they share one string.
        info = ClientInfo(self._now_ms(), sys.intern(ip), sys.intern(user_agent[:USER_AGENT_CHARACTERS]))
        rules = self._rules if verify is None else replace(self._rules, verify=verify)
        connection.open(self, client_id, Session(rules, identity), info, protocol)
        self._open_connections.add(connection)
        self._opened(protocol.name).inc()
        self._log.debug("client opened", client=client_id, ip=ip, user=identity.user)
        ping_ms = int(self._settings.ping_seconds * 1000)
        welcome = events.Welcome(client_id, self._settings.node, __version__, ping_ms, self._limits_about)
        self._subscriptions.accept(connection, welcome)

    def connection_closed(self, connection: Connection, code: int) -> None:
        """Remove a closed connection from the hub and the registry in the same turn."""
        self._open_connections.remove(connection)
        self._subscriptions.remove(connection)
        self._admission.release(connection)
        self.limits.connection_closed(connection)
        known = code in _RFC_CODES or code in connection.protocol.close_codes.values()
        self._metrics.closes.labels(str(int(code)) if known else "other").inc()
        self._log.debug("client closed", client=connection.client_id, code=int(code))

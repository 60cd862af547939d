"""Handles the messages of this node's clients: decodes them, applies the limits, and carries out the effects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

from gateway.connections.admission import Admission
from gateway.connections.async_commands import AsyncCommands
from gateway.connections.backend_calls import BackendCalls
from gateway.connections.client_limits import ClientLimits
from gateway.core import commands, effects, events, frames
from gateway.core.effects import Findings
from gateway.core.errors import CloseReason, ProtocolError, ProtocolViolation
from gateway.core.permissions import ContinueChecks
from gateway.core.rate_limits import RateOutcome
from gateway.delivery.sender import Sender
from gateway.delivery.subscriptions import Subscriptions
from gateway.metrics import Metrics
from gateway.transports.connection import Connection, ConnectionStage

NOT_ALLOWED_ANY_MORE: Final = "not allowed for the user that you are now"


class CommandHandler:
    """Executes the commands of clients. `status` returns the answer to getStatus."""

    def __init__(
        self,
        limits: ClientLimits,
        sender: Sender,
        subscriptions: Subscriptions,
        async_commands: AsyncCommands,
        backend_calls: BackendCalls | None,
        admission: Admission,
        metrics: Metrics,
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self.limits = limits
        self.received_bytes = 0
        self._sender = sender
        self._subscriptions = subscriptions
        self._async_commands = async_commands
        self._backend_calls = backend_calls  # None: no back end
        self._admission = admission
        self._received = cache(metrics.received.labels)  # by type: a dozen
        self._status = status

    def message_received(self, connection: Connection, opcode: int, payload: bytes) -> None:
        """Decode, check and handle one message. If it is several, the others follow as `frames.PART`."""
        kind = "invalid"
        try:
            size = 0 if opcode == frames.PART else len(payload)  # the bytes of a part are counted already
            self.received_bytes += size
            verdict = self.limits.count(connection, size)
            if verdict is RateOutcome.DISCONNECT:
                return
            if opcode != frames.PART:
                if opcode == frames.TEXT and not payload.isascii():
                    payload.decode()
                messages = connection.conversation.split(opcode, payload)
                if len(messages) > 1:
                    connection.insert(messages[1:])
                payload = messages[0]
            command = connection.conversation.decode(payload)
            kind = "pong" if command is None else command.kind
            if command is not None and self.limits.allows(connection, command, verdict):
                self._handle(connection, command, effects.NO_FINDINGS)
        except ProtocolError as error:
            self._sender.send_error(connection, error)
        except ProtocolViolation as violation:
            connection.disconnect(violation.reason, violation.message)
        except UnicodeDecodeError:
            connection.disconnect(CloseReason.NOT_UTF8, "text is not UTF-8")
        except Exception:
            self._sender.send_internal_error(connection)
        finally:
            self._received(kind).inc()

    def command_received(self, connection: Connection, command: commands.Command) -> None:
        """Check and handle a command that is part of the request which opened the connection."""
        self._received(command.kind).inc()
        try:
            if self.limits.allows(connection, command, self.limits.count(connection, 0)):
                self._handle(connection, command, effects.NO_FINDINGS)
        except ProtocolError as error:
            self._sender.send_error(connection, error)
        except Exception:
            self._sender.send_internal_error(connection)

    def control_frame_received(self, connection: Connection, size: int) -> bool:
        """Count a ping or pong like a message. False: far over the limit, and the connection is closed."""
        return self.limits.count(connection, size) is not RateOutcome.DISCONNECT

    def _handle(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        effect = connection.session.handle(message, connection.audiences, findings)
        match effect:
            case effects.ChargeTopics(topics, request_id):
                if self.limits.charge(connection, topics, request_id):
                    self._handle(connection, message, replace(findings, topics_charged=True))
            case effects.AskBackend() | effects.RefreshKeys():
                self._async_commands.resolve(
                    connection, effect, findings, partial(self._handle_again, connection, message)
                )
            case ContinueChecks(verdicts):
                connection.hold("judge")
                more = replace(findings, verdicts=verdicts)
                asyncio.get_running_loop().call_soon(self._continue_checks, connection, message, more)
            case _:
                self._carry_out_effect(connection, effect)

    def _continue_checks(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        # A separate hold key, so that handling the message again can hold it under "judge" again.
        connection.hold("judged")
        self._handle_again(connection, message, findings)
        connection.release("judged")

    def _handle_again(self, connection: Connection, message: commands.Command, findings: Findings) -> None:
        """Handle a message again with the `findings` collected for it."""
        if connection.stage is ConnectionStage.OPEN:
            try:
                self._handle(connection, message, findings)
            except ProtocolError as error:
                self._sender.send_error(connection, error)
            except Exception:
                self._sender.send_internal_error(connection)

    def _carry_out_effect(self, connection: Connection, effect: effects.FinalEffect) -> None:
        match effect:
            case effects.SendReply(event):
                self._sender.send(connection, event)
            case effects.SubscribeTopics(login=True):
                enter = partial(self._subscriptions.subscribe, connection, effect)
                self._drop_topics(
                    connection, effect.removed, partial(self._admission.change_identity, connection, enter)
                )
            case effects.SubscribeTopics():
                self._subscriptions.subscribe(connection, effect)
            case effects.UnsubscribeTopics(topics, request_id):
                done = events.Unsubscribed(topics, request_id)
                self._subscriptions.unsubscribe_all(connection, topics, done)
            case effects.PublishMessage(publication, request_id):
                self._async_commands.publish_message(connection, publication, request_id)
            case effects.LoggedIn(removed):
                enter = partial(self._subscriptions.change_identity, connection)
                self._drop_topics(connection, removed, partial(self._admission.change_identity, connection, enter))
            case effects.SendStatus(request):
                self._sender.send(connection, events.Answer(request, self._status()))
            case effects.ReadTopic(request):
                self._async_commands.read_topic(connection, request)
            case effects.FetchFromBackend():
                assert self._backend_calls is not None  # the session knows that there is a back end
                self._backend_calls.fetch(connection, effect)
            case effects.ForwardCommand():
                assert self._backend_calls is not None
                self._backend_calls.forward(connection, effect)
            case effects.WriteLogs(entries):
                self.limits.log_browser_lines(connection, entries)
                self._sender.send(connection, events.LogsAccepted(len(entries)))
            case effects.CloseConnection(reason, text):
                connection.disconnect(reason, text)

    def _drop_topics(self, connection: Connection, topics: Collection[str], then: Callable[[], None]) -> None:
        """Unsubscribe topics that the new identity has no permission for, notify the client, then call `then`."""
        subscribed = [topic for topic in topics if connection.audiences.has_topic(topic)]
        if subscribed:
            ended = events.SubscriptionsEnded(subscribed, NOT_ALLOWED_ANY_MORE)
            self._subscriptions.unsubscribe_all(connection, subscribed, ended, then)
        else:
            then()

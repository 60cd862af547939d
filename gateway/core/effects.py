"""The effects of a client's message: what the node has to do after the session has decided.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gateway.core import commands
from gateway.core.errors import CloseReason
from gateway.core.events import Event
from gateway.core.identity import Identity
from gateway.core.json_text import Json, RequestId
from gateway.core.permissions import ContinueChecks, Verdict
from gateway.core.position import Position
from gateway.core.publication import Publication
from gateway.core.subscription_options import PLAIN, SubscriptionOptions
from gateway.core.topic_rules import Act


@dataclass(frozen=True, slots=True)
class SendReply:
    """Send `event` to the client."""

    event: Event


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Move the client to the user and role audiences of its new `Session.identity`, and acknowledge."""

    removed: tuple[str, ...] = ()  # subscribed topics that the new identity may not subscribe to


@dataclass(frozen=True, slots=True)
class SubscribeTopics:
    """Subscribe the client to these topics, and acknowledge after Redis has confirmed the subscriptions."""

    topics: tuple[str, ...]
    request_id: RequestId
    login: bool  # the message carried a token, so `Session.identity` has changed too
    recover: Mapping[str, Position] = field(default_factory=dict)
    removed: tuple[str, ...] = ()  # as in `LoggedIn`
    by_server: bool = False  # the back end subscribes the client, which has not asked
    whole: bool = False  # if a topic cannot be recovered, the client is not subscribed, and gets an error
    options: SubscriptionOptions | None = PLAIN  # None: topics that the client has already keep theirs
    join_leave: tuple[str, ...] = ()  # topics of which the client is sent each client that joins or leaves
    data: Json = None  # of the back end that subscribes the client


@dataclass(frozen=True, slots=True)
class UnsubscribeTopics:
    """Unsubscribe the client from these topics, and acknowledge."""

    topics: tuple[str, ...]
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class PublishMessage:
    """Publish the message, and acknowledge after Redis has accepted it."""

    publication: Publication
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class SendStatus:
    """Reply with the status of the node."""

    request: commands.Request


@dataclass(frozen=True, slots=True)
class ReadTopic:
    """Reply with the topic's history or presence. `request.action` says which."""

    request: commands.Request


@dataclass(frozen=True, slots=True)
class FetchFromBackend:
    """Reply with the resource that the back end serves at `target`."""

    request: commands.Request
    target: str
    seconds: float  # how long the answer is fresh, unless it carries its own time
    stale_seconds: float  # how long it may still be served after that


@dataclass(frozen=True, slots=True)
class ForwardCommand:
    """Send the command to the back end in the name of `identity`, and acknowledge with the back end's answer."""

    command: commands.BackendCommand
    identity: Identity


@dataclass(frozen=True, slots=True)
class WriteLogs:
    """Write the log lines of the browser to the node's log, and acknowledge."""

    entries: tuple[Mapping[str, Json], ...]


@dataclass(frozen=True, slots=True)
class AskBackend:
    """Ask the back end on which of `topics` `identity` may `act`, then handle the message again."""

    act: Act
    topics: tuple[str, ...]
    identity: Identity


@dataclass(frozen=True, slots=True)
class RefreshKeys:
    """Ask the key server for the key `kid`, then handle the message again."""

    kid: str = ""


@dataclass(frozen=True, slots=True)
class ChargeTopics:
    """Charge the client as for a SUBSCRIBE to `topics` topics, then handle the message again.

    The client changes its identity, so the session must decide about each subscribed topic again.
    """

    topics: int
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """Close the connection."""

    reason: CloseReason
    text: str


FinalEffect: TypeAlias = (
    SendReply
    | LoggedIn
    | SubscribeTopics
    | UnsubscribeTopics
    | PublishMessage
    | SendStatus
    | ReadTopic
    | FetchFromBackend
    | ForwardCommand
    | WriteLogs
    | CloseConnection
)
Effect: TypeAlias = FinalEffect | AskBackend | RefreshKeys | ChargeTopics | ContinueChecks


@dataclass(frozen=True, slots=True)
class Findings:
    """What the node has found out for one message, so that the session can handle the message again."""

    keys_refreshed: bool = False  # the node has asked the key server, or tried to
    topics_charged: bool = False  # the client was charged, see `ChargeTopics`
    key_server_failed: bool = False  # the key server did not answer
    backend_verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # by topic, as the back end answered
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # by topic, as the rules decide; not all topics yet


NO_FINDINGS: Final = Findings()

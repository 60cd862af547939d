"""The messages that nodes send each other on the control channel.  (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.core import json_text, rebalancing, revocations
from gateway.core.names import is_name
from gateway.core.position import Position
from gateway.core.revocations import Revocation
from gateway.core.topic_rules import is_reserved, is_topic

MAX_BYTES: Final = 64 << 10
MAX_EXPIRES: Final = 1e12  # seconds since 1970
MAX_SUBSCRIBED: Final = 100  # topics of one order to subscribe
MAX_KEPT: Final = 100  # clients that an order to disconnect leaves connected
CLOSE_CODES: Final = range(3000, 5000)  # that an order to disconnect may name


class ControlError(ValueError):
    """A control message is not valid."""


@dataclass(frozen=True, slots=True)
class ClientSelector:
    """The clients that a control message concerns: one client, or all clients of a user."""

    client: str | None
    user: str | None


@dataclass(frozen=True, slots=True)
class DisconnectClients:
    """Close the sockets of the selected clients, except those in `keep`. `code`: of the close; None: the usual one."""

    clients: ClientSelector
    reason: str
    code: int | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnsubscribeClients:
    """Unsubscribe the selected clients from topics."""

    clients: ClientSelector
    topics: list[str]
    reason: str


@dataclass(frozen=True, slots=True)
class SubscribeClients:
    """Subscribe the selected clients to topics. The topic rules do not restrict it.

    The clients receive the messages after the positions in `recover`, by topic, and `data` with the notice.
    """

    clients: ClientSelector
    topics: list[str]
    recover: Mapping[str, Position] = field(default_factory=dict)
    data: Any = None


@dataclass(frozen=True, slots=True)
class ExpireClients:
    """Set when the logins of the selected clients expire, in seconds since 1970; None: never."""

    clients: ClientSelector
    expires: float | None


@dataclass(frozen=True, slots=True)
class ForgetHistory:
    """Forget the cached history of these topics, because it was deleted from Redis."""

    topics: list[str]


@dataclass(frozen=True, slots=True)
class DrainNode:
    """Drain a node: it closes its clients and exits."""

    node: str


@dataclass(frozen=True, slots=True)
class MoveClients:
    """Move the clients of a node above the number `keep` to other nodes."""

    node: str
    keep: int
    seconds: float  # the time over which the closes are spread
    after: float  # seconds before the first close


@dataclass(frozen=True, slots=True)
class RevokeTokens:
    """Revoke tokens."""

    revocations: list[Revocation]


@dataclass(frozen=True, slots=True)
class CheckReload:
    """Check the files that a reload would read, and report. `request` identifies the reload."""

    request: str


@dataclass(frozen=True, slots=True)
class ApplyReload:
    """Use what the check of `request` has read, and report."""

    request: str


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a node reports of one step of a reload."""

    request: str
    step: str  # check or apply
    node: str
    digest: str  # identifies what the node has read
    error: str  # why its files are invalid; "": they are valid


ControlMessage = (
    DisconnectClients
    | UnsubscribeClients
    | SubscribeClients
    | ExpireClients
    | ForgetHistory
    | DrainNode
    | MoveClients
    | RevokeTokens
    | CheckReload
    | ApplyReload
    | ReloadReport
)


def parse(payload: bytes) -> ControlMessage:
    """Parse a control message: a JSON object with ``op``.

    Raises:
        ControlError: `payload` is not a valid control message.
    """
    try:
        message: Any = json_text.loads(payload) if len(payload) <= MAX_BYTES else None
        match message["op"]:
            case "disconnect":
                return DisconnectClients(_clients(message), _reason(message), _code(message), _kept(message))
            case "unsubscribe":
                return UnsubscribeClients(_clients(message), _topics(message), _reason(message))
            case "subscribe":
                topics = list(dict.fromkeys(_topics(message)))
                if not 0 < len(topics) <= MAX_SUBSCRIBED or any(map(is_reserved, topics)):
                    raise ValueError(f"subscribe needs 1 to {MAX_SUBSCRIBED} topics that are not the gateway's own")
                recover = {topic: _position(message["recover"][topic]) for topic in message.get("recover", {})}
                return SubscribeClients(_clients(message), topics, recover, message.get("data"))
            case "expire":
                expires = message["expires"]
                if expires is not None and not 0 <= float(expires) <= MAX_EXPIRES:
                    raise ValueError("expires is out of range")
                return ExpireClients(_clients(message), None if expires is None else float(expires))
            case "forget":
                return ForgetHistory(_topics(message))
            case "drain":
                return DrainNode(_name(message, "node"))
            case "move":
                keep, seconds, after = int(message["keep"]), float(message["seconds"]), float(message.get("after", 0))
                if keep < 0 or not 0 <= seconds <= rebalancing.MAX_SECONDS or not 0 <= after <= rebalancing.MAX_SECONDS:
                    raise ValueError("out of range")
                return MoveClients(_name(message, "node"), keep, seconds, after)
            case "revoke":
                return RevokeTokens([revocations.parse(one) for one in message["revocations"]])
            case "check_reload":
                return CheckReload(_name(message, "request"))
            case "apply_reload":
                return ApplyReload(_name(message, "request"))
            case "reload_report":
                request, step, node = (_name(message, key) for key in ("request", "step", "node"))
                return ReloadReport(request, step, node, str(message["digest"]), str(message["error"]))
            case op:
                raise ValueError(f"unknown op {op!r}")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ControlError(str(error)) from None


def _clients(message: dict[str, Any]) -> ClientSelector:
    if "client" in message:
        return ClientSelector(_name(message, "client"), None)
    return ClientSelector(None, _name(message, "user"))


def _code(message: dict[str, Any]) -> int | None:
    if "code" not in message:
        return None
    code = message["code"]
    if not isinstance(code, int) or code not in CLOSE_CODES:
        raise ValueError("code must be a whole number from 3000 to 4999")
    return code


def _kept(message: dict[str, Any]) -> tuple[str, ...]:
    kept = message.get("keep", [])
    if not isinstance(kept, list) or len(kept) > MAX_KEPT or not all(map(is_name, kept)):
        raise ValueError(f"keep must be a list of at most {MAX_KEPT} client ids")
    return tuple(kept)


def _position(about: dict[str, Any]) -> Position:
    offset, epoch = about["offset"], about["epoch"]
    if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0 or not isinstance(epoch, str):
        raise ValueError("a position has an offset and an epoch")
    return Position(epoch, offset)


def _topics(message: dict[str, Any]) -> list[str]:
    names = message.get("topics", [])
    if not isinstance(names, list) or not all(map(is_topic, names)):
        raise ValueError("topics must be a list of topic names")
    return names


def _name(message: dict[str, Any], key: str) -> str:
    name = message[key]
    if not is_name(name):
        raise ValueError(f"{key} must be a name")
    assert isinstance(name, str)
    return name


def _reason(message: dict[str, Any]) -> str:
    reason = message.get("reason") or "by the operator"
    if not is_name(reason):
        raise ValueError("reason must be a string of 1 to 200 characters")
    assert isinstance(reason, str)
    return reason

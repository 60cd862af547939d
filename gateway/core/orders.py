"""What one node asks of the others, on the control channel.  (pure)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gateway.core import balance, protocol, revocations
from gateway.core.protocol import is_name
from gateway.core.revocations import Revocation
from gateway.core.topics import is_topic

MAX_BYTES: Final = 64 << 10


class OrderError(ValueError):
    """No order, or none that can be understood."""


@dataclass(frozen=True, slots=True)
class Whom:
    """The clients an order is about: one, or all of a user."""

    client: str | None
    user: str | None


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close their sockets."""

    whom: Whom
    reason: str


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Take topics from them."""

    whom: Whom
    topics: list[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    """The history of these topics was dropped."""

    topics: list[str]


@dataclass(frozen=True, slots=True)
class Drain:
    """This node leaves."""

    node: str


@dataclass(frozen=True, slots=True)
class Move:
    """This node, `after` so many seconds, sends what it has above `keep` clients to the others, over `seconds`."""

    node: str
    keep: int
    seconds: float
    after: float


@dataclass(frozen=True, slots=True)
class Revoke:
    """These tokens hold no more."""

    revocations: list[Revocation]


Order = Disconnect | Unsubscribe | Forget | Drain | Move | Revoke


def parse(payload: bytes) -> Order:
    """The order in `payload`, a JSON object with ``op``.

    Raises:
        OrderError: It is none.
    """
    try:
        said: Any = protocol.loads(payload) if len(payload) <= MAX_BYTES else None
        match said["op"]:
            case "disconnect":
                return Disconnect(_whom(said), _reason(said))
            case "unsubscribe":
                return Unsubscribe(_whom(said), _topics(said), _reason(said))
            case "forget":
                return Forget(_topics(said))
            case "drain":
                return Drain(_name(said, "node"))
            case "move":
                keep, seconds, after = int(said["keep"]), float(said["seconds"]), float(said.get("after", 0))
                if keep < 0 or not 0 <= seconds <= balance.MAX_SECONDS or not 0 <= after <= balance.MAX_SECONDS:
                    raise ValueError("out of range")
                return Move(_name(said, "node"), keep, seconds, after)
            case "revoke":
                return Revoke([revocations.parse(one) for one in said["revocations"]])
            case op:
                raise ValueError(f"unknown op {op!r}")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise OrderError(str(error)) from None


def _whom(said: dict[str, Any]) -> Whom:
    if "client" in said:
        return Whom(_name(said, "client"), None)
    return Whom(None, _name(said, "user"))


def _topics(said: dict[str, Any]) -> list[str]:
    names = said.get("topics", [])
    if not isinstance(names, list) or not all(map(is_topic, names)):
        raise ValueError("topics must be a list of topic names")
    return names


def _name(said: dict[str, Any], key: str) -> str:
    name = said[key]
    if not is_name(name):
        raise ValueError(f"{key} must be a name")
    assert isinstance(name, str)
    return name


def _reason(said: dict[str, Any]) -> str:
    reason = said.get("reason") or "by the operator"
    if not is_name(reason):
        raise ValueError("reason must be a sentence of at most 200 characters")
    assert isinstance(reason, str)
    return reason

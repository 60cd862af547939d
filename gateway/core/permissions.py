"""Decides whether an identity may act on a topic under the topic's rule.  (pure)"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.identity import SUPERADMIN, Identity
from gateway.core.json_text import RequestId
from gateway.core.topic_rules import Need, Rule

TOPICS_PER_TURN: Final = 1000  # decisions in one turn of the event loop: about a millisecond


class Verdict(enum.Enum):
    """The decision about one act on one topic. All members but the first two are refusals, named by their reason."""

    ALLOWED = enum.auto()
    ASK = enum.auto()  # the back end decides
    NO_USER = enum.auto()
    NO_ROLE = enum.auto()
    NOT_OWNER = enum.auto()
    NO_TOKEN = enum.auto()
    NOT_SUBSCRIBED = enum.auto()  # allowed to subscribers of the topic, which the rule alone does not know
    NO_CLIENT = enum.auto()  # the rule allows it to no client
    NO_NAMESPACE = enum.auto()  # no rule names the topic's namespace, and the rules demand one
    REFUSED = enum.auto()  # by the back end
    UNKNOWN = enum.auto()  # the back end did not answer


def check_rule(need: Need, rule: Rule, topic: str, identity: Identity) -> Verdict:
    """Decide whether `identity` fulfils `need`, which `rule` states for an act on `topic`."""
    match need:
        case Need.ANYONE:
            return Verdict.ALLOWED
        case Need.NOBODY:
            return Verdict.NO_CLIENT
        case Need.ASK:
            return Verdict.ASK
        case Need.TOKEN:
            return Verdict.NO_TOKEN
        case Need.SUBSCRIBER:
            return Verdict.NOT_SUBSCRIBED
    if identity.user is None:
        return Verdict.NO_USER
    match need:
        case Need.USER:
            fits, otherwise = True, Verdict.NO_USER
        case Need.ADMIN:
            fits, otherwise = identity.is_admin, Verdict.NO_ROLE
        case Need.SUPERADMIN:
            fits, otherwise = identity.role == SUPERADMIN, Verdict.NO_ROLE
        case Need.OWNER:  # the pattern has one *, at the end
            fits, otherwise = topic == rule.pattern[:-1] + identity.user, Verdict.NOT_OWNER
    return Verdict.ALLOWED if fits else otherwise


def check_name(topic: str, identity: Identity) -> Verdict | None:
    """Refuse by the name of a topic, as Centrifugo does: `$name` needs a token, `name#17,42` has these users only.

    None: the topic's rule decides.
    """
    if topic.startswith("$"):
        return Verdict.NO_TOKEN
    _, limited, users = topic.partition("#")
    if not limited:
        return None
    if identity.user is None:
        return Verdict.NO_USER
    return None if identity.user in users.split(",") else Verdict.NOT_OWNER


# The reason and message for each refusal. `refusal` inserts {topic}.
REFUSALS: Final[dict[Verdict, tuple[ErrorReason, str]]] = {
    Verdict.NO_USER: (ErrorReason.AUTHENTICATION_NEEDED, "Authentication required for topic {topic}"),
    Verdict.NO_ROLE: (ErrorReason.ROLE_NEEDED, "Topic {topic} needs a role that the token does not give"),
    Verdict.NOT_OWNER: (ErrorReason.NOT_ALLOWED, "Topic {topic} is another user's"),
    Verdict.NO_TOKEN: (ErrorReason.NOT_ALLOWED, "Topic {topic} needs a subscription token that names it, in tokens"),
    Verdict.NOT_SUBSCRIBED: (ErrorReason.NOT_ALLOWED, "Only subscribers of {topic} may do that: subscribe to it first"),
    Verdict.NO_CLIENT: (ErrorReason.NOT_ALLOWED, "No client may do that on {topic}"),
    Verdict.NO_NAMESPACE: (
        ErrorReason.UNKNOWN_NAMESPACE,
        "unknown channel: no topic rule names the namespace of {topic}, and strict_namespaces demands one",
    ),
    Verdict.REFUSED: (ErrorReason.NOT_ALLOWED, "The back end does not allow that on {topic}"),
    Verdict.UNKNOWN: (
        ErrorReason.UNAVAILABLE,
        "The back end did not answer whether that is allowed on {topic}, try again",
    ),
}


def refusal(verdict: Verdict, topic: str, request_id: RequestId) -> ProtocolError:
    """The error that the node sends to the client for `verdict`, a refusal."""
    reason, message = REFUSALS[verdict]
    return ProtocolError(reason, message.format(topic=topic), request_id)


@dataclass(frozen=True, slots=True)
class ContinueChecks:
    """Handle the message again in the next turn of the event loop. `verdicts` holds the decisions so far."""

    verdicts: Mapping[str, Verdict]


def check_topics(
    names: Iterable[str],
    known: Mapping[str, Verdict],
    backend_verdicts: Mapping[str, Verdict],
    decide_one: Callable[[str], Verdict],
) -> list[tuple[str, Verdict]] | ContinueChecks:
    """Decide about each of `names`, at most `TOPICS_PER_TURN` of them in one turn of the event loop.

    Args:
        names: Topics.
        known: The verdicts of earlier turns.
        backend_verdicts: What the back end has answered. It replaces `Verdict.ASK`.
        decide_one: Decides about one topic.

    Returns:
        Each name with its verdict; or `ContinueChecks`, if topics are left for another turn.
    """
    verdicts = dict(known)
    left = [name for name in names if name not in verdicts]
    for name in left[:TOPICS_PER_TURN]:
        verdicts[name] = decide_one(name)
    if len(left) > TOPICS_PER_TURN:
        return ContinueChecks(verdicts)
    return [(n, backend_verdicts.get(n, verdicts[n]) if verdicts[n] is Verdict.ASK else verdicts[n]) for n in names]

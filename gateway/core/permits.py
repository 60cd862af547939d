"""Whether somebody may do something on a topic, as its rule says.  (pure)"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.core.identity import SUPERADMIN, Identity
from gateway.core.protocol import Code, ProtocolError, RequestId
from gateway.core.topics import Need, Rule

JUDGE_TOPICS: Final = 1000  # of which one turn judges: about a millisecond


class Verdict(enum.Enum):
    """What the rule says of an act; all but the first two are refusals, and say why."""

    ALLOWED = enum.auto()
    ASK = enum.auto()  # the back end knows
    NO_USER = enum.auto()
    NO_ROLE = enum.auto()
    NOT_OWNER = enum.auto()
    NO_TOKEN = enum.auto()
    NOBODY = enum.auto()
    REFUSED = enum.auto()  # said the back end
    UNKNOWN = enum.auto()  # the back end did not say


def weigh(need: Need, rule: Rule, topic: str, identity: Identity) -> Verdict:
    """What `identity` may do on `topic`, for which `rule` holds and has this `need`."""
    match need:
        case Need.ANYONE:
            return Verdict.ALLOWED
        case Need.NOBODY:
            return Verdict.NOBODY
        case Need.ASK:
            return Verdict.ASK
        case Need.TOKEN:
            return Verdict.NO_TOKEN
    if identity.user is None:
        return Verdict.NO_USER
    match need:
        case Need.USER:
            fits, otherwise = True, Verdict.NO_USER
        case Need.ADMIN:
            fits, otherwise = identity.is_admin, Verdict.NO_ROLE
        case Need.SUPERADMIN:
            fits, otherwise = identity.role == SUPERADMIN, Verdict.NO_ROLE
        case Need.OWNER:  # its pattern has one *, at the end
            fits, otherwise = topic == rule.pattern[:-1] + identity.user, Verdict.NOT_OWNER
    return Verdict.ALLOWED if fits else otherwise


# How a refusal is told; {topic} is put in.
REFUSALS: Final[dict[Verdict, tuple[Code, str]]] = {
    Verdict.NO_USER: (Code.AUTHENTICATION_NEEDED, "Authentication required for topic {topic}"),
    Verdict.NO_ROLE: (Code.ROLE_NEEDED, "Topic {topic} needs a role that the token does not give"),
    Verdict.NOT_OWNER: (Code.NOT_ALLOWED, "Topic {topic} is another user's"),
    Verdict.NO_TOKEN: (Code.NOT_ALLOWED, "Topic {topic} needs a subscription token that names it, in tokens"),
    Verdict.NOBODY: (Code.NOT_ALLOWED, "No client may do that on {topic}"),
    Verdict.REFUSED: (Code.NOT_ALLOWED, "The back end does not allow that on {topic}"),
    Verdict.UNKNOWN: (
        Code.UNAVAILABLE,
        "The back end could not be asked whether that is allowed on {topic}, try again",
    ),
}


def refusal(verdict: Verdict, topic: str, request_id: RequestId) -> ProtocolError:
    """The error that a client is sent for a verdict that refuses."""
    code, message = REFUSALS[verdict]
    return ProtocolError(code, message.format(topic=topic), request_id)


@dataclass(frozen=True, slots=True)
class Judge:
    """Handle the message again in the next turn of the event loop: topics remain to be judged beside these."""

    judged: Mapping[str, Verdict]


def judge(
    names: Iterable[str],
    judged: Mapping[str, Verdict],
    said: Mapping[str, Verdict],
    weigh_one: Callable[[str], Verdict],
) -> list[tuple[str, Verdict]] | Judge:
    """Each of `names` with its verdict; `Judge` with the verdicts so far, if too many are left for one turn.

    `judged`: verdicts of the turns before; `said`: those of the back end, about topics for which it is to be asked.
    """
    verdicts = dict(judged)
    left = [name for name in names if name not in verdicts]
    for name in left[:JUDGE_TOPICS]:
        verdicts[name] = weigh_one(name)
    if len(left) > JUDGE_TOPICS:
        return Judge(verdicts)
    return [(n, said.get(n, verdicts[n]) if verdicts[n] is Verdict.ASK else verdicts[n]) for n in names]

"""Where the back end answers a REQUEST: its topic's `source`, with what the request says put in.  (pure)

Everything that the answer depends on stands in the target, so who asks for the same target may be given the same
answer. What the client says stands in the query, or where the rule puts it; who it is only where the rule says so.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlencode

import orjson

from gateway.core.messages import Request
from gateway.core.protocol import Code, Json, ProtocolError
from gateway.core.topics import PLACEHOLDER, Rule

MAX_TARGET_LENGTH: Final = 4000  # characters; servers refuse a request line of more than 8,000


def target_of(rule: Rule, request: Request, user: str | None) -> str:
    """The path and query, percent-encoded, at which the back end answers `request` of `user`.

    Raises:
        ProtocolError: There can be no such path; or it needs a user, and nobody is known.
    """
    matched = re.fullmatch("(.*)".join(map(re.escape, rule.pattern.split("*"))), request.topic)
    parts = matched.groups() if matched is not None else ()  # an alias: then the pattern is no pattern

    def put_in(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        if name == "user" and user is None:
            raise ProtocolError(
                Code.AUTHENTICATION_NEEDED, f"Authentication required for topic {request.topic}", request.request_id
            )
        known = {"topic": request.topic, "action": request.action, "user": user or ""}
        return quote(known[name] if name in known else parts[int(name) - 1], safe="")

    path = PLACEHOLDER.sub(put_in, rule.source)
    if any(segment in ("", ".", "..") for segment in path.split("/")[1:]):
        # It would lead elsewhere than the rule says.
        raise ProtocolError(
            Code.UNKNOWN_TOPIC, f"No requests are answered on topic {request.topic}", request.request_id
        )
    query = {} if "{action}" in rule.source else {"action": request.action}
    query |= {name: _text(value) for name, value in sorted(request.parameters.items()) if name != "action"}
    target = f"{path}?{urlencode(query)}" if query else path
    if len(target) > MAX_TARGET_LENGTH:
        raise ProtocolError(Code.DATA_REFUSED, "The request's parameters are too long", request.request_id)
    return target


def _text(value: Json) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()

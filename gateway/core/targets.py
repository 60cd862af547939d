"""Where the back end answers a REQUEST: its topic's `source`, with what the request says put in.  (pure)

Everything that the answer depends on stands in the target, so who asks for the same target may be given the same
answer. What the client says stands in the query, or where the rule puts it; who it is only where the rule says so.

A value that is put into the path stays one segment of it, for every server that reads it: also for one that decodes
twice, takes a backslash for a slash, or normalises Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote, urlencode

import orjson

from gateway.core.messages import Request
from gateway.core.protocol import Code, Json, ProtocolError, shown
from gateway.core.topics import PLACEHOLDER, Rule, captures

MAX_TARGET_LENGTH: Final = 4000  # characters; servers refuse a request line of more than 8,000

# Separators; what looks like one though no normalisation makes it of it (fraction and division slash, set minus, other
# solidi, drawn diagonals); and the sign of an encoded octet, since some servers decode twice.
_NOT_IN_A_SEGMENT: Final = re.compile(r"[/\\%\u2044\u2215\u2216\u29f5-\u29f9\u2571\u2572]")


def target_of(rule: Rule, request: Request, user: str | None) -> str:
    """The path and query, percent-encoded, at which the back end answers `request` of `user`.

    Raises:
        ProtocolError: There can be no such path; or it needs a user, and nobody is known.
    """
    parts = captures(rule.pattern, request.topic) or ()  # None is an alias: then the pattern is no pattern

    def put_in(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        if name == "user" and user is None:
            raise ProtocolError(
                Code.AUTHENTICATION_NEEDED, f"Authentication required for topic {request.topic}", request.request_id
            )
        known = {"topic": request.topic, "action": request.action, "user": user or ""}
        value = known[name] if name in known else parts[int(name) - 1]
        if not is_segment(value):
            raise ProtocolError(
                Code.UNKNOWN_TOPIC,
                f"No requests are answered on topic {request.topic} with {shown(value)} in the back end's path: a "
                "value there cannot be empty, . or .., and has no slash, % or control character",
                request.request_id,
            )
        return quote(value, safe="")

    path = PLACEHOLDER.sub(put_in, rule.source)
    if any(segment in ("", ".", "..") for segment in path.split("/")[1:]):
        # Two values beside each other: it would lead elsewhere than the rule says.
        raise ProtocolError(
            Code.UNKNOWN_TOPIC, f"No requests are answered on topic {request.topic}", request.request_id
        )
    query = {} if "{action}" in rule.source else {"action": request.action}
    query |= {name: _text(value) for name, value in sorted(request.parameters.items()) if name != "action"}
    target = f"{path}?{urlencode(query)}" if query else path
    if len(target) > MAX_TARGET_LENGTH:
        raise ProtocolError(Code.DATA_REFUSED, "The request's parameters are too long", request.request_id)
    return target


def is_segment(value: str) -> bool:
    """Whether `value`, percent-encoded, is one segment of a path to every server, whatever it decodes or normalises."""
    # A server that normalises what it decoded sees what NFKC makes of it: of U+FF0F a slash, of U+2025 two dots.
    return all(
        # Some servers drop blanks, and what stands behind a semicolon (RFC 3986, 3.3), before they look for dots.
        form.partition(";")[0].strip() not in ("", ".", "..")
        and form.isprintable()
        and not _NOT_IN_A_SEGMENT.search(form)
        for form in ((value,) if value.isascii() else (value, unicodedata.normalize("NFKC", value)))
    )


def _text(value: Json) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()

"""The URL path at which the back end answers a REQUEST: the topic's `source` with its placeholders filled in.  (pure)

The target contains everything that the answer depends on, so requests with the same target may share one answer. The
parameters of the client go into the query, or where the rule has a placeholder. The user goes in only where the rule
has `{user}`.

A value in the path stays one segment for every server: also for a server that decodes twice, treats a backslash as a
slash, or normalises Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote, urlencode

import orjson

from gateway.core.commands import Request
from gateway.core.errors import ErrorReason, ProtocolError
from gateway.core.json_text import Json
from gateway.core.names import quoted
from gateway.core.topic_rules import PLACEHOLDER, Rule, captures

MAX_TARGET_LENGTH: Final = 4000  # characters; servers reject a request line of more than 8,000

# Path separators; characters that look like one but do not normalise to it (fraction slash, division slash, set minus,
# other solidi, box-drawing diagonals); and "%", since some servers decode twice.
_NOT_IN_A_SEGMENT: Final = re.compile(r"[/\\%\u2044\u2215\u2216\u29f5-\u29f9\u2571\u2572]")


def backend_target(rule: Rule, request: Request, user: str | None) -> str:
    """The path and query, percent-encoded, at which the back end answers the `request` of `user`.

    Raises:
        ProtocolError: A value does not fit into the path, or the path needs a user and the client is anonymous.
    """
    parts = captures(rule.pattern, request.topic) or ()  # no match means an alias; its rule's pattern has no *

    def put_in(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        if name == "user" and user is None:
            raise ProtocolError(
                ErrorReason.AUTHENTICATION_NEEDED,
                f"Authentication required for topic {request.topic}",
                request.request_id,
            )
        known = {"topic": request.topic, "action": request.action, "user": user or ""}
        value = known[name] if name in known else parts[int(name) - 1]
        if not is_path_segment(value):
            raise ProtocolError(
                ErrorReason.UNKNOWN_TOPIC,
                f"No requests are answered on topic {request.topic} with {quoted(value)} in the back end's path: a "
                "value there cannot be empty, . or .., and has no slash, % or control character",
                request.request_id,
            )
        return quote(value, safe="")

    path = PLACEHOLDER.sub(put_in, rule.source)
    if any(segment in ("", ".", "..") for segment in path.split("/")[1:]):
        # Two adjacent values can together form such a segment, which would change the path.
        raise ProtocolError(
            ErrorReason.UNKNOWN_TOPIC, f"No requests are answered on topic {request.topic}", request.request_id
        )
    query = {} if "{action}" in rule.source else {"action": request.action}
    query |= {name: _text(value) for name, value in sorted(request.parameters.items()) if name != "action"}
    target = f"{path}?{urlencode(query)}" if query else path
    if len(target) > MAX_TARGET_LENGTH:
        raise ProtocolError(ErrorReason.DATA_REFUSED, "The request's parameters are too long", request.request_id)
    return target


def is_path_segment(value: str) -> bool:
    """Whether `value`, percent-encoded, is one path segment for every server, also after decoding or normalising."""
    # NFKC, which a server may apply after decoding, turns U+FF0F into a slash and U+2025 into two dots.
    return all(
        # Some servers remove blanks and the part after a semicolon (RFC 3986, 3.3) before they check for dots.
        form.partition(";")[0].strip() not in ("", ".", "..")
        and form.isprintable()
        and not _NOT_IN_A_SEGMENT.search(form)
        for form in ((value,) if value.isascii() else (value, unicodedata.normalize("NFKC", value)))
    )


def _text(value: Json) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()

"""Issues the tokens that clients log in with, and those that permit to subscribe to topics. For back ends.

    from gateway import tokens

    token = tokens.issue(os.environ["GATEWAY_JWT_SECRET"], user="ann", seconds=900)

A key is a secret that the nodes have (``GATEWAY_JWT_SECRET``: HS256), or the text of a PEM file with a private key
whose public key the nodes have. Signing with a private key needs the extra ``server`` of the package.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from gateway.core.identity import MAX_TOKEN_TOPICS, ROLES
from gateway.core.names import MAX_NAME_LENGTH
from gateway.core.topic_rules import PATTERN_FORM, is_pattern


def issue(
    key: str, user: str, role: str = "user", seconds: float = 3600, now: float | None = None, *,
    kid: str | None = None, **claims: Any,
) -> str:  # fmt: skip
    """Issue a login token for `user` that expires after `seconds`.

    Args:
        key: The secret or private key to sign with.
        user: The name of the user, 1 to 200 characters.
        role: ``user``, ``admin`` or ``superadmin``.
        seconds: How long the token is valid.
        now: Seconds since 1970; None: the time of this machine.
        kid: The name of the key, if the nodes get their keys from a key server.
        **claims: Further claims: ``aud`` and ``iss`` as the nodes require them, ``jti`` to revoke this token alone,
            ``info`` (JSON of at most 2 KiB) for presence.

    Raises:
        ValueError: The user, the role or the key cannot be used.
    """
    if not 0 < len(user) <= MAX_NAME_LENGTH:
        raise ValueError(f"user must have 1 to {MAX_NAME_LENGTH} characters, not {len(user)}")
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(sorted(ROLES))}, not {role!r}")
    return sign({"id": user, "wallet_address": user, "role": role, **_times(seconds, now), **claims}, key, kid)


def issue_for_topics(
    key: str, topics: Iterable[str], user: str | None = None, seconds: float = 3600, now: float | None = None, *,
    kid: str | None = None, **claims: Any,
) -> str:  # fmt: skip
    """Issue a subscription token for `topics`, names or patterns. Only `user` may use it, or every client if None.

    `key`, `seconds`, `now`, `kid` and `claims`: as for `issue`.

    Raises:
        ValueError: A topic or the key cannot be used.
    """
    named = list(topics)
    if not 0 < len(named) <= MAX_TOKEN_TOPICS or not all(map(is_pattern, named)):
        raise ValueError(f"topics must be 1 to {MAX_TOKEN_TOPICS} names or patterns of {PATTERN_FORM}, not {named!r}")
    subject = {} if user is None else {"sub": user}
    return sign({**subject, "topics": named, **_times(seconds, now), **claims}, key, kid)


def sign(claims: Mapping[str, Any], key: str, kid: str | None = None) -> str:
    """The token with `claims`, signed with `key`. `kid`: the name of the key, for its header.

    Raises:
        ValueError: The key is empty, or a PEM text that is no private key.
    """
    if not key:
        raise ValueError("a token must be signed: give the secret of the nodes, GATEWAY_JWT_SECRET")
    header = {"typ": "JWT"} | ({"kid": kid} if kid is not None else {})
    if "-----BEGIN " in key:
        import jwt  # only here: publishers do without it

        from gateway.auth.key_set import signing_key

        private, algorithm = signing_key(key)
        return jwt.encode(dict(claims), private, algorithm=algorithm, headers=header)
    signed = b".".join(_encoded(orjson.dumps(part)) for part in ({"alg": "HS256", **header}, claims))
    return (signed + b"." + _encoded(hmac.digest(key.encode(), signed, hashlib.sha256))).decode()


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _times(seconds: float, now: float | None) -> dict[str, int]:
    issued = time.time() if now is None else now
    return {"iat": int(issued), "exp": int(issued + seconds)}

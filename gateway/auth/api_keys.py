"""The API keys of the HTTP API. Each key has a name, which the audit log shows, and scopes, which limit its use.

The node stores only the SHA-256 digests of the keys. Passwords need a slow hash because they can be guessed. A key has
256 random bits and cannot be guessed, and a slow hash would slow down every request.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from gateway.core.identity import AuthError, Identity
from gateway.core.topic_rules import PATTERN_FORM, is_pattern, matches
from gateway.settings import Settings

Scope = Literal["read", "publish", "services", "admin"]
ALL_SCOPES: Final[tuple[Scope, ...]] = ("read", "publish", "services", "admin")
PATTERNED: Final = ("publish", "services")  # scopes that may have a pattern: ``publish:token:*``, ``services:price-*``

PREFIX: Final = "gwk_"  # lets scanners for leaked secrets recognise a key
SINGLE_KEY_NAME: Final = "GATEWAY_API_KEY"  # the name of the key in that setting

MAX_SCOPES: Final = 100  # of one key; each publish is compared with all of them
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class ApiKeysError(ValueError):
    """A file of API keys is invalid. The message names the file, the key and the reason."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key.

    Its `scopes` are ``read``, ``admin``, ``publish`` and ``services``. The last two may have a pattern of topics or
    services: ``publish:<pattern>``.
    """

    name: str
    digest: bytes = field(repr=False)  # SHA-256 of the key
    scopes: tuple[str, ...]

    def may(self, scope: Scope) -> bool:
        """Whether the key has `scope`, with or without a pattern."""
        return scope in self.scopes or (scope in PATTERNED and any(s.startswith(f"{scope}:") for s in self.scopes))

    def may_publish(self, topic: str) -> bool:
        """Whether the key may publish on `topic`."""
        return self._covers("publish", topic)

    def may_report(self, service: str) -> bool:
        """Whether the key may report the state of `service`."""
        return self._covers("services", service)

    def _covers(self, scope: Scope, name: str) -> bool:
        if scope in self.scopes:
            return True
        prefix = f"{scope}:"
        patterns = (text.removeprefix(prefix) for text in self.scopes if text.startswith(prefix))
        return any(matches(pattern, name) for pattern in patterns)


class ApiKeys:
    """All API keys of a node."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        """Whether the node has any API key."""
        return bool(self._keys)

    def replace(self, other: ApiKeys) -> tuple[list[str], list[str]]:
        """Become equal to `other`. Returns the names of the keys that are new, and of those that are no longer valid.

        A key whose scopes have changed is in both.
        """
        before, now = set(self._keys), set(other._keys)
        self._keys = other._keys
        return sorted(key.name for key in now - before), sorted(key.name for key in before - now)

    @property
    def digest(self) -> str:
        """Identifies the keys of the file, which nodes compare. Without GATEWAY_API_KEY, which may be easy to guess."""
        values = sorted((key.name, key.digest.hex(), key.scopes) for key in self._keys if key.name != SINGLE_KEY_NAME)
        return hashlib.sha256(repr(values).encode()).hexdigest()[:16]

    def find(self, given: bytes) -> ApiKey | None:
        """Find the key `given`; None if it is unknown. The time does not depend on the result."""
        return self.find_digest(digest_of(given))

    def find_digest(self, digest: bytes) -> ApiKey | None:
        """As `find`, for the digest of a key."""
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def identify(self, given: str) -> Identity | None:
        """The identity of a client that opens a socket with the key `given`; None if it is not a known key.

        The client is anonymous and may subscribe to all topics that clients may.

        Raises:
            AuthError: The key does not have the scope `read`.
        """
        key = self.find(given.encode(errors="replace"))
        if key is None:
            return None
        if not key.may("read"):
            raise AuthError("token_invalid", f"The key {key.name} does not have the scope read")
        return Identity(reads_all=True)


def digest_of(key: bytes) -> bytes:
    """The SHA-256 digest of a key."""
    return hashlib.sha256(key).digest()


def administrator_key(user: str) -> ApiKey:
    """The key that stands for an administrator's token: it has all scopes, and a name that no other key can have."""
    return ApiKey(f"admin:{user}", b"", ALL_SCOPES)


def new(name: str, scopes: Iterable[str]) -> tuple[str, str]:
    """Make a new key. Returns the key, and the TOML table to add to the file of keys so that nodes accept it.

    Raises:
        ApiKeysError: The name or a scope is invalid.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    table: dict[str, Any] = {
        "name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "scopes": list(scopes),
    }  # fmt: skip
    _key(table, "the new key")
    listed = ", ".join(map(json.dumps, table["scopes"]))  # a JSON string in ASCII is a TOML string
    return secret, f'[[key]]\nname = "{name}"\nsha256 = "{table["sha256"]}"\nscopes = [{listed}]\n'


def load(settings: Settings) -> ApiKeys:
    """Load the keys of `settings`: GATEWAY_API_KEY, which has all scopes, and those in the file GATEWAY_API_KEYS.

    Raises:
        ApiKeysError: The file cannot be read, or is invalid.
    """
    keys = []
    if settings.api_key:
        keys.append(ApiKey(SINGLE_KEY_NAME, hashlib.sha256(settings.api_key.encode()).digest(), ALL_SCOPES))
    if settings.api_keys:
        try:
            text = Path(settings.api_keys).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ApiKeysError(f"GATEWAY_API_KEYS: {settings.api_keys} cannot be read: {error}") from None
        keys += parse(text, settings.api_keys)
    return ApiKeys(keys)


def parse(text: str, file: str) -> list[ApiKey]:
    """Parse a file of keys: TOML with one ``[[key]]`` table per key. `file` is its name for error messages.

    Raises:
        ApiKeysError: `text` is not TOML, or a key is invalid.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ApiKeysError(f"{file}: {error}") from None
    tables = document.get("key", [])
    if document.keys() - {"key"} or not isinstance(tables, list):
        raise ApiKeysError(f"{file}: write [[key]], in two brackets, for each key, and nothing else")
    keys = [_key(table, f"{file}: key {number}") for number, table in enumerate(tables, 1)]
    names = [key.name for key in keys]
    for name in names:
        if names.count(name) > 1 or name == SINGLE_KEY_NAME:
            raise ApiKeysError(f"{file}: {name!r} names two keys; rename one of them")
    if len({key.digest for key in keys}) < len(keys):
        raise ApiKeysError(f"{file}: two keys are the same; remove one of them")
    return keys


def _key(table: dict[str, Any], where: str) -> ApiKey:
    unknown = table.keys() - {"name", "sha256", "scopes"}
    if unknown:
        raise ApiKeysError(f"{where}: {min(unknown)!r} is not known; a key has name, sha256 and scopes")
    name, digest, scopes = table.get("name"), table.get("sha256"), table.get("scopes")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ApiKeysError(f"{where}: name must be 1 to 64 of A-Z a-z 0-9 _ . -")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ApiKeysError(f"{where} ({name}): sha256 must be 64 of 0-9 a-f; `gateway key new` prints it")
    if not isinstance(scopes, list) or not 0 < len(scopes) <= MAX_SCOPES or not all(map(_is_scope, scopes)):
        raise ApiKeysError(
            f'{where} ({name}): scopes must list 1 to {MAX_SCOPES} of "read", "admin", "publish", '
            '"publish:<pattern of topics>", "services" and "services:<pattern of services>", where a pattern has '
            f"{PATTERN_FORM}"
        )
    return ApiKey(name, bytes.fromhex(digest), tuple(scopes))


def _is_scope(text: object) -> bool:
    if not isinstance(text, str):
        return False
    scope, _, pattern = text.partition(":")
    return text in ALL_SCOPES or (scope in PATTERNED and is_pattern(pattern))

"""The settings of a node, read from environment variables, and secrets also from files; immutable.

A variable is ``GATEWAY_`` and the field's name in capitals; names contain the unit. An unknown ``GATEWAY_`` variable or
an invalid value raises `SettingsError` with one sentence that names it, so that a typo stops the start instead of
running with a default.
"""

from __future__ import annotations

import difflib
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gateway import setting_readers as read
from gateway.core.urls import check_http

PREFIX = "GATEWAY_"

# Variables of the command line client, which a node accepts and ignores.
CLIENT_VARIABLES = frozenset({"GATEWAY_URL"})

# Listening addresses to which no client can connect.
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104

# RFC 7518, 3.2: a key must be as long as the hash; a shorter one can be guessed from a single token.
STRONG_SECRET_BYTES = 32

# Settings whose values are never shown.
SECRETS = frozenset({"jwt_secret", "jwt_secret_previous", "api_key", "redis_url", "backend_url", "backend_secret"})
# GATEWAY_JWT_SECRET_FILE names a file that holds GATEWAY_JWT_SECRET; each secret has this variant.
FILE_SUFFIX = "_FILE"


class SettingsError(ValueError):
    """An invalid variable; the message is one sentence for the person who set it."""


def _setting(default: Any, about: str, reader: Callable[[str], Any]) -> Any:
    return field(default=default, metadata={"about": about, "read": reader})


def read_secret_files(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, where the content of the file that ``GATEWAY_X_FILE`` names stands for the secret ``GATEWAY_X``.

    Line breaks at the end of a file do not count.

    Raises:
        SettingsError: A file cannot be read or is empty, or both variables are set.
    """
    values = dict(environ)
    for variable in (PREFIX + name.upper() for name in sorted(SECRETS)):
        file = values.pop(variable + FILE_SUFFIX, "")
        if not file:
            continue
        if values.get(variable):
            raise SettingsError(f"{variable} and {variable}{FILE_SUFFIX} are both set; unset one of them")
        try:
            values[variable] = Path(file).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{variable}{FILE_SUFFIX}: {file} cannot be read: {error}") from None
        if not values[variable]:
            raise SettingsError(f"{variable}{FILE_SUFFIX}: {file} is empty; write the secret into it")
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a node. `from_env` reads them; every field has a safe default."""

    host: str = _setting(
        "127.0.0.1", "address to listen on", read.matching(r"[A-Za-z0-9.:\-]{1,255}", "a host name or address")
    )
    port: int = _setting(9000, "port to listen on", read.integer(0, 65535))
    advertise: str = _setting(
        "",
        "host:port at which others reach the node; default: HOST:PORT, where HOST is every address the host name",
        read.address,
    )
    node: str = _setting(
        "",
        "this node's name; default: the host name",
        read.matching(r"[A-Za-z0-9_.\-]{0,64}", "at most 64 of A-Z a-z 0-9 _ . -"),
    )
    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0",
        "where Redis is: redis://, rediss:// (TLS) or unix://; behind Sentinels redis+sentinel://host,host/service; "
        "a Redis Cluster redis+cluster://host,host",
        read.redis_url,
    )
    namespace: str = _setting(
        "gw:",
        "prefix of every key and channel; environments that share a Redis need different ones",
        read.matching(r"[A-Za-z0-9_.:\-]{0,64}", "at most 64 of A-Z a-z 0-9 _ . : -"),
    )
    jwt_secret: str = _setting("", "secret that signs the users' tokens (HS256, HS384, HS512)", read.secret)
    jwt_secret_previous: str = _setting(
        "", "a second secret that is also accepted while secrets are changed", read.secret
    )
    jwt_pem: str = _setting("", "PEM file of public keys for tokens signed with RS, PS, ES or EdDSA", str)
    jwks_url: str = _setting(
        "", "URL of a JWKS document with such keys, instead of the file or in addition to it",
        lambda text: check_http(text, what="https://id.example/jwks.json", query=True),
    )  # fmt: skip
    jwks_seconds: float = _setting(
        300.0, "age after which the JWKS document is fetched again", read.seconds(10, 86_400)
    )
    jwt_audience: str = _setting("", "required `aud` of tokens; if unset, tokens with an `aud` are rejected", str)
    jwt_issuer: str = _setting("", "required `iss` of tokens; if unset, any value is accepted", str)
    jwt_leeway_seconds: float = _setting(
        5.0, "time for which an expired token is still accepted: for clocks that differ, and to renew it",
        read.seconds(0, 600),
    )  # fmt: skip
    revocation_seconds: int = _setting(
        30 * 86_400, "how long a revocation without an end is kept; no token may live longer",
        read.integer(60, 10 * 365 * 86_400),
    )  # fmt: skip
    api_key: str = _setting("", "bearer key of the HTTP API with all scopes", read.secret)
    api_keys: str = _setting(
        "", "TOML file of further keys, each with a name and scopes; without any key the API is off", str
    )
    origins: tuple[str, ...] = _setting(
        (), "origins of pages and apps that may connect, beside the node's own: https://app.example, "
        "capacitor://localhost, file://, null", read.origins,
    )  # fmt: skip
    hosts: tuple[str, ...] = _setting(
        (),
        "accepted Host names, `*.name` for all subdomains; addresses and names without a dot are always accepted",
        read.hosts,
    )
    open: bool = _setting(False, "1: every client may subscribe and publish to all topics; for a demo", read.flag)
    backend_url: str = _setting(
        "",
        "HTTP back end that answers COMMAND, and REQUEST on topics with a `source`; if unset, they get error 5001",
        lambda text: check_http(text, what="http://api:3000", query=False),
    )
    backend_secret: str = _setting(
        "", "secret that signs calls to the back end; if unset, the back end cannot verify who calls", read.secret
    )
    backend_timeout_seconds: float = _setting(
        5.0, "deadline of a call to the back end, including a retry", read.seconds(0.1, 60)
    )
    backend_connections: int = _setting(
        32, "concurrent calls to the back end; further calls wait", read.integer(1, 1000)
    )
    topics: str = _setting("", "TOML file of topic rules; default: the file of the package", str)
    default_subscribe: str = _setting(
        "anyone", "what a client needs to subscribe to a topic that no rule matches",
        read.matching("anyone|user|role:admin|role:superadmin|ask|token|nobody",
                  "anyone, user, role:admin, role:superadmin, ask, token or nobody"),
    )  # fmt: skip
    default_publish: str = _setting(
        "user", "what a client needs to publish on such a topic",
        read.matching("anyone|user|role:admin|role:superadmin|subscriber|ask|nobody",
                  "anyone, user, role:admin, role:superadmin, subscriber, ask or nobody"),
    )  # fmt: skip
    trusted_proxies: tuple[str, ...] = _setting(
        ("127.0.0.1",),
        "peers whose X-Forwarded-For names the client, and X-Forwarded-Proto its scheme",
        read.networks,
    )
    log_level: str = _setting(
        "info",
        "debug, info, warning or error; debug has a line for each connect and close",
        read.matching(r"debug|info|warning|error", "debug, info, warning or error"),
    )
    max_message_bytes: int = _setting(
        1 << 20, "largest message a client or publisher may send", read.integer(1024, 16 << 20)
    )
    max_client_topics: int = _setting(5000, "topics one client may subscribe to", read.integer(1, 1_000_000))
    client_buffer_bytes: int = _setting(
        4 << 20, "unsent bytes after which a slow client is closed (3008)", read.integer(64 << 10, 1 << 30)
    )
    buffer_bytes: int = _setting(
        256 << 20, "unsent bytes of all clients of the node; beyond it those with the most are closed (3008)",
        read.integer(64 << 10, 1 << 40),
    )  # fmt: skip
    compression: bool = _setting(
        False,
        "1: messages are compressed for clients that offer permessage-deflate, once for all of them",
        read.flag,
    )
    max_connections: int = _setting(
        0, "connections of the node, then 503; 0: nine tenths of its limit of file descriptors",
        read.integer(0, 1_000_000),
    )  # fmt: skip
    connects_per_second: int = _setting(
        2000, "sockets opened on the node, over ten seconds; then 503", read.integer(1, 1_000_000)
    )
    max_user_connections: int = _setting(
        100, "connections of one user, on all nodes together; 0: any number", read.integer(0, 1_000_000)
    )
    max_address_connections: int = _setting(
        1000,
        "connections of one address (IPv6: /64), on all nodes together; 0: any number",
        read.integer(0, 1_000_000),
    )
    user_publishes_per_second: int = _setting(
        100,
        "publishes of one user, over ten seconds, on all nodes together; 0: any number",
        read.integer(0, 1_000_000),
    )
    user_stored_bytes: int = _setting(
        32 << 20, "bytes that Redis may store for one user's messages, as a burst and again each day; 0: any number",
        read.integer(0, 1 << 40),
    )  # fmt: skip
    redis_memory_bytes: int = _setting(
        0, "memory of Redis above which it stores no client messages (5030); 0: 80 % of maxmemory, or 40 % of RAM",
        read.integer(0, 1 << 50),
    )  # fmt: skip
    client_messages_per_second: int = _setting(
        100,
        "messages of one client, over ten seconds; then 4029, and 3013 if it goes on",
        read.integer(1, 1_000_000),
    )
    client_subscriptions_per_second: int = _setting(
        1500, "topics one client may subscribe to, over ten seconds; then 4029, 3013", read.integer(1, 1_000_000)
    )
    client_log_lines_per_second: int = _setting(
        5, "log lines of one browser, over ten seconds; then 4029", read.integer(1, 10_000)
    )
    ping_seconds: float = _setting(25.0, "silence after which a client is pinged", read.seconds(1, 3600))
    pong_seconds: float = _setting(10.0, "further silence after which it is closed (3012)", read.seconds(0.5, 3600))
    presence_grace_seconds: float = _setting(
        5.0, "time in which a user may reconnect to a topic without a leave", read.seconds(0, 3600)
    )
    lease_seconds: float = _setting(
        10.0, "duration of a node's lease in Redis, which is renewed five times in that time", read.seconds(1, 600)
    )
    redis_timeout_seconds: float = _setting(2.0, "deadline of each Redis round trip", read.seconds(0.1, 60))
    wait_replicas: int = _setting(
        0,
        "replicas that must confirm a publish on a topic with history before it is acknowledged",
        read.integer(0, 16),
    )
    wait_fsync: bool = _setting(
        False,
        "1: acknowledge it only when Redis and these replicas have it on disk; Redis 7.2, appendonly yes",
        read.flag,
    )
    wait_seconds: float = _setting(
        1.0, "deadline of these confirmations; then the publish is answered with 503, 5030", read.seconds(0.01, 60)
    )
    drain_seconds: float = _setting(5.0, "window over which a leaving node closes its clients", read.seconds(0, 3600))
    centrifugo: bool = _setting(
        False,
        "1: serve Centrifugo's clients at /connection, and its server API at /api with an X-API-Key header",
        read.flag,
    )
    centrifugo_exp: str = _setting(
        "required", "optional: a subscription token with the claim `channel` needs no `exp`, as with Centrifugo",
        read.matching("required|optional", "required or optional"),
    )  # fmt: skip
    centrifugo_personal: bool = _setting(
        False, "1: a client of Centrifugo's protocol is subscribed to the topic #USER when it connects", read.flag
    )
    fast_paths: bool = _setting(
        True, "0: POST /api/publish takes the way of all other requests; the answers are the same", read.flag
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str], hostname: Callable[[], str] = socket.gethostname) -> Settings:
        """Settings from variables such as ``GATEWAY_PORT``; an empty value counts as not set.

        Raises:
            SettingsError: An unknown ``GATEWAY_`` variable or a value out of its range.
        """
        environ = read_secret_files(environ)
        known = {PREFIX + f.name.upper(): f for f in fields(cls)}
        values: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX) or variable in CLIENT_VARIABLES:
                continue
            if variable not in known:
                near = difflib.get_close_matches(variable, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else "; docs/reference/settings.md lists all settings"
                raise SettingsError(f"{variable} is not a setting of the gateway{hint}")
            # Only the namespace may be empty on purpose, which gives the key names of the first specification.
            if text or variable == f"{PREFIX}NAMESPACE":
                setting = known[variable]
                try:
                    values[setting.name] = setting.metadata["read"](text)
                except ValueError as error:
                    secret = setting.name in SECRETS or "@" in text  # a URL with a password
                    got = "" if secret else f", not {text!r}"
                    raise SettingsError(f"{variable} must be {error}{got}") from None
        if not values.get("node"):
            values["node"] = re.sub(r"[^A-Za-z0-9_.\-]", "-", hostname())[:64] or "node"
        settings = cls(**values)
        if not settings.advertise:
            host = hostname() if settings.host in EVERY_ADDRESS else settings.host
            settings = replace(settings, advertise=f"{f'[{host}]' if ':' in host else host}:{settings.port}")
        if settings.client_buffer_bytes < settings.max_message_bytes:
            raise SettingsError(
                f"GATEWAY_CLIENT_BUFFER_BYTES ({settings.client_buffer_bytes}) must be at least "
                f"GATEWAY_MAX_MESSAGE_BYTES ({settings.max_message_bytes}), or no client could receive such a message"
            )
        if (settings.wait_replicas or settings.wait_fsync) and settings.wait_seconds >= settings.redis_timeout_seconds:
            raise SettingsError(
                f"GATEWAY_WAIT_SECONDS ({settings.wait_seconds:g}) must be below GATEWAY_REDIS_TIMEOUT_SECONDS "
                f"({settings.redis_timeout_seconds:g}), or a slow replica or disk would look like a lost Redis"
            )
        return settings

    def warnings(self) -> list[str]:
        """Warnings about valid but unwise settings, one sentence each, without secrets."""
        found = []
        if self.backend_url and not self.backend_secret:
            found.append("GATEWAY_BACKEND_SECRET is not set: the back end cannot verify that the gateway sent a call")
        if self.open:
            found.append(
                "GATEWAY_OPEN=1: every client may subscribe and publish to all topics; use this only for a demo"
            )
        secrets = ("jwt_secret", "jwt_secret_previous", "api_key", "backend_secret")
        weak = [name for name in secrets if 0 < len(getattr(self, name).encode()) < STRONG_SECRET_BYTES]
        return found + [
            f"{PREFIX}{name.upper()} is weak: it should have {STRONG_SECRET_BYTES} bytes or more" for name in weak
        ]

"""Commands for credentials: issue, explain and revoke tokens, and make API keys."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import httpx
import jwt
import orjson

from gateway import tokens
from gateway.auth import api_keys, key_set, token_verifier
from gateway.auth.key_set import InvalidKey, KeySet
from gateway.cli.api_client import ApiClient
from gateway.cli.command import CommandFailure, CommandMisuse, Steps, api_command, as_json_option
from gateway.cli.tables import print_fields, print_json, print_table, print_text
from gateway.core import names, timestamps
from gateway.core.identity import MAX_TOKEN_TOPICS, ROLES, AuthError
from gateway.core.topic_rules import PATTERN_FORM, is_pattern
from gateway.settings import Settings, SettingsError

MAX_TOKEN_SECONDS: Final = 10 * 365 * 86_400
FETCH_SECONDS: Final = 5.0
MIN_SECRET_BYTES: Final = 32  # RFC 7518, 3.2: as many as the hash has


def _settings() -> Settings:
    try:
        return Settings.from_env(os.environ)
    except SettingsError as error:
        raise CommandMisuse(str(error)) from None


# ---- tokens


@click.group()
def token() -> None:
    """Make or explain a token."""


@token.command()
@click.argument("user", required=False)
@click.option("--role", type=click.Choice(sorted(ROLES)), default="user", show_default=True)
@click.option(
    "--seconds",
    type=click.IntRange(1, MAX_TOKEN_SECONDS),
    default=3600,
    show_default=True,
    help="How long it is valid.",
)
@click.option("--id", "token_id", metavar="JTI", help="The id of the token, for revoking it.")
@click.option("--topic", "topics", multiple=True, help="Make a subscription token for this topic or pattern.")
@click.option("--pem", type=click.Path(dir_okay=False), help="Sign with this private key, not with GATEWAY_JWT_SECRET.")
@click.option("--kid", help="The name of the key in the JWKS document.")
@as_json_option
def issue(
    user: str | None, role: str, seconds: int, token_id: str | None, topics: tuple[str, ...], pem: str | None,
    kid: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a token for USER.

    It is signed with GATEWAY_JWT_SECRET, or with the private key in --pem. With --topic it is a subscription token.
    Only USER may use that token; without USER, every client may.
    """
    if user is None and not topics:
        raise click.UsageError("Give USER: only a token with --topic may have no user.")
    if user is not None and not 0 < len(user) <= names.MAX_NAME_LENGTH:
        raise click.UsageError(f"USER must have 1 to {names.MAX_NAME_LENGTH} characters.")
    if len(topics) > MAX_TOKEN_TOPICS or not all(map(is_pattern, topics)):
        raise click.UsageError(
            f"--topic must be a topic or a pattern of {PATTERN_FORM}, at most {MAX_TOKEN_TOPICS} times."
        )
    settings, now = _settings(), time.time()
    key = _signing_key(settings.jwt_secret, pem)
    named = {"jti": token_id, "aud": settings.jwt_audience, "iss": settings.jwt_issuer}
    claims = {name: value for name, value in named.items() if value}
    try:
        if topics:
            made = tokens.issue_for_topics(key, topics, user, seconds, now, kid=kid, **claims)
        else:
            assert user is not None
            made = tokens.issue(key, user, role, seconds, now, kid=kid, **claims)
    except ValueError as error:
        raise CommandFailure(f"{pem} cannot sign: {error}") from None
    if as_json:
        about = {"topics": list(topics)} if topics else {"role": role}
        print_json({"token": made, "user": user, **about, "expires": timestamps.iso_time(int(now + seconds) * 1000)})
    else:
        click.echo(made)


def _signing_key(secret: str, pem: str | None) -> str:
    """The text of the file `pem`, or else `secret`."""
    if pem is not None:
        try:
            text = Path(pem).read_text()
        except (OSError, ValueError) as error:
            raise CommandFailure(f"{pem} cannot sign: {error}") from None
        if "-----BEGIN " not in text:
            raise CommandFailure(f"{pem} cannot sign: it is not a PEM file")
        return text
    if not secret:
        raise CommandFailure("A token must be signed: set GATEWAY_JWT_SECRET to the secret of the nodes")
    if len(secret.encode()) < MIN_SECRET_BYTES:
        click.echo(f"GATEWAY_JWT_SECRET is weak: use at least {MIN_SECRET_BYTES} bytes", err=True)
    return secret


@token.command()
@click.argument("text", metavar="TOKEN")
@as_json_option
@click.pass_context
def explain(context: click.Context, text: str, as_json: bool) -> None:
    """Show the claims of TOKEN (- for standard input) and whether it is valid.

    The command verifies it with GATEWAY_JWT_SECRET, GATEWAY_JWT_PEM and GATEWAY_JWKS_URL, and fails if it is not valid.
    It does not check whether the token is revoked: see gateway revocations.
    """
    text = (sys.stdin.read() if text == "-" else text).strip()
    settings = _settings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a weak secret does not concern this token
        try:
            # Decoded without verification, only to show the claims. `_verdict` verifies the token.
            decoded = jwt.decode_complete(text, options={"verify_signature": False})
        except jwt.InvalidTokenError as error:
            raise CommandFailure(f"This is not a token: {error}") from None
        verdict, reason = _verdict(text, "topics" in decoded["payload"], settings)
    if as_json:
        about = {"header": decoded["header"], "claims": decoded["payload"]}
        print_json({**about, "valid": reason is None, "reason": reason, "message": verdict})
    else:
        claims = {name: _claim(name, value) for name, value in decoded["payload"].items()}
        print_fields({"alg": decoded["header"].get("alg"), **claims, "verdict": verdict})
    context.exit(0 if reason is None else 1)


def _verdict(text: str, for_topics: bool, settings: Settings) -> tuple[str, str | None]:
    """The verdict as a sentence, and the reason why the token is not valid."""
    token_keys = _ring(settings)
    if not token_keys:
        return "Not verified: GATEWAY_JWT_SECRET is not set", "token_invalid"
    verifier = token_verifier.TokenVerifier(
        token_keys,
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        leeway_seconds=settings.jwt_leeway_seconds,
    )
    try:
        if for_topics:
            grant = verifier.verify_grant(text)
            return f"Valid: allows {grant.user or 'every client'} to subscribe to {', '.join(grant.patterns)}", None
        identity = verifier.verify(text)
    except AuthError as error:
        return str(error), error.reason
    return f"Valid: user {identity.user}, role {identity.role}", None


def _ring(settings: Settings) -> KeySet:
    try:
        token_keys = key_set.load(settings)
        if settings.jwks_url:
            with httpx.Client(timeout=FETCH_SECONDS, transport=httpx.HTTPTransport()) as http:
                token_keys.replace_served(
                    key_set.from_jwks(orjson.loads(http.get(settings.jwks_url).raise_for_status().content))
                )
    except InvalidKey as error:
        raise CommandFailure(str(error)) from None
    except (httpx.HTTPError, ValueError) as error:
        raise CommandFailure(f"GATEWAY_JWKS_URL: the keys at {settings.jwks_url} cannot be read: {error}") from None
    return token_keys


def _claim(name: str, value: Any) -> str:
    if name in ("exp", "iat", "nbf"):
        with suppress(TypeError, ValueError, OverflowError, OSError):
            return f"{value}  ({datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%S} UTC)"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


# ---- revocations


@click.command()
@click.option("--user", help="All tokens issued to this user until now.")
@click.option("--id", "token_id", metavar="JTI", help="The token with this id, its claim jti.")
@click.option("--token", "text", metavar="TOKEN", help="This token, by its id; - reads it from standard input.")
@click.option("--expires", type=click.FloatRange(0), help="When it expires, in seconds since 1970.")
@api_command
def revoke(
    api_client: ApiClient, user: str | None, token_id: str | None, text: str | None, expires: float | None
) -> Steps:
    """Revoke tokens on every node, and close their sockets.

    The close code is 3500: the client must not reconnect with the same token.
    """
    if sum(given is not None for given in (user, token_id, text)) != 1:
        raise click.UsageError("Give one of --user, --id and --token.")
    if text is not None:
        claims = _unverified(sys.stdin.read() if text == "-" else text)
        token_id, expires = claims.get("jti"), expires if expires is not None else claims.get("exp")
        if not isinstance(token_id, str) or not token_id:
            raise CommandFailure(
                "This token has no id (jti), so it cannot be revoked alone: revoke all of its user's tokens with --user"
            )
    document = {"user": user, "jti": token_id, "expires": expires}
    done = api_client.revoke({name: value for name, value in document.items() if value is not None})
    yield done
    print_text(f"Revoked {_about(done)} until {done['until']}.")


def _unverified(text: str) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(text.strip(), options={"verify_signature": False})
    except jwt.InvalidTokenError as error:
        raise CommandFailure(f"This is not a token: {error}") from None
    return claims


@click.command()
@api_command
def revocations(api_client: ApiClient) -> Steps:
    """List the revocations."""
    found = api_client.revocations()
    yield found
    rows = [[_about(one), one["until"]] for one in found["revocations"]]
    print_table(["revoked", "until"], rows, keep=1, none="No token is revoked.")


def _about(one: Mapping[str, Any]) -> str:
    return f"token {one['jti']}" if one["jti"] is not None else f"tokens of {one['user']} issued up to {one['before']}"


# ---- API keys


@click.group()
def key() -> None:
    """Make keys of the HTTP API."""


@key.command("new")
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, required=True,
    help="read, admin, publish, publish:PATTERN for some topics, services, or services:PATTERN for the reports of some "
    "services. Repeatable.",
)  # fmt: skip
def new_key(name: str, scopes: tuple[str, ...]) -> None:
    """Make a key with the name NAME.

    The key is printed on standard output, once. The entry for the file of keys is printed on standard error.
    """
    try:
        secret, table = api_keys.new(name, scopes)
    except api_keys.ApiKeysError as error:
        raise CommandMisuse(str(error)) from None
    click.echo("The key, which is shown only once:", err=True)
    click.echo(secret)
    click.echo(f"\nAdd this to the file of GATEWAY_API_KEYS on every node:\n\n{table}", err=True, nl=False)


COMMANDS: Final = (token, revoke, revocations, key)

"""Composes what a node needs to verify tokens: the keys, the key server, and the revoked tokens."""

from __future__ import annotations

from collections.abc import Callable

from gateway.auth import keyring
from gateway.auth.authenticator import Authenticator
from gateway.auth.keyserver import KeyServer
from gateway.cluster.keys import Keys
from gateway.cluster.link import Link
from gateway.cluster.revoked import Revoked
from gateway.core.identity import Identity, KeyServerUnavailable, UnknownKey
from gateway.metrics import Metrics
from gateway.settings import Settings


class Trust:
    """The authenticator with its keys and revocations. `now` returns seconds since 1970."""

    def __init__(self, settings: Settings, link: Link, keys: Keys, metrics: Metrics, now: Callable[[], float]) -> None:
        self.revoked = Revoked(link, keys, now, settings.jwt_leeway_seconds)
        ring = keyring.load(settings)
        self._server: KeyServer | None = None
        if settings.jwks_url:
            self._server = KeyServer(settings.jwks_url, ring, metrics, refresh_seconds=settings.jwks_seconds)
        self.authenticator = Authenticator(
            ring, audience=settings.jwt_audience, issuer=settings.jwt_issuer,
            leeway_seconds=settings.jwt_leeway_seconds, revoked=self.revoked.refuses, now=now,
        )  # fmt: skip

    @property
    def reason(self) -> str | None:
        """Why the node cannot verify tokens now; None: it can."""
        if not self.revoked.known:
            return "revocations: not yet read from Redis"
        return self._server.reason if self._server is not None else None

    async def run(self) -> None:
        """Keep the keys of the key server fresh, forever. Returns at once if there is no key server."""
        if self._server is not None:
            await self._server.run()

    async def refresh_keys(self, kid: str) -> bool:
        """Ask the key server for the key `kid`. False if it did not answer; see `KeyServer.refresh`."""
        return self._server is None or await self._server.refresh(kid)

    async def identify(self, token: str) -> Identity:
        """Verify `token` and return its identity. If the token names an unknown key, this asks the key server first.

        Raises:
            KeyServerUnavailable: The key server did not answer.
            AuthError: The token is invalid.
        """
        try:
            return self.authenticator.verify(token)
        except UnknownKey as unknown:
            asked = await self.refresh_keys(unknown.kid)
        try:
            return self.authenticator.verify(token)
        except UnknownKey:
            if asked:
                raise
            raise KeyServerUnavailable(
                "token_invalid", "The key server does not answer, so the token cannot be verified; try again"
            ) from None

    def is_valid(self, identity: Identity) -> bool:
        """Whether the token of `identity` has not been revoked since its verification."""
        return not self.revoked.refuses(identity.token_id, identity.user, identity.issued)

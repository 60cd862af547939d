"""Whose word a node takes: the keys that tokens are verified with, and the tokens that hold no more."""

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
    """The authenticator with all that it goes by. `now` gives seconds since 1970."""

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
        """Why tokens cannot be verified now; None: they can."""
        if not self.revoked.known:
            return "what is revoked has not been read yet"
        return self._server.reason if self._server is not None else None

    async def run(self) -> None:
        """Keep the keys of the key server fresh, for ever; without one there is nothing to do."""
        if self._server is not None:
            await self._server.run()

    async def refresh_keys(self, kid: str) -> bool:
        """Have the key server asked for the key `kid`; False: it could not be asked (`KeyServer.refresh`)."""
        return self._server is None or await self._server.refresh(kid)

    async def identify(self, token: str) -> Identity:
        """Who `token` proves, the key server being asked if it names a key that is not known yet.

        Raises:
            KeyServerUnavailable: The key server could not be asked.
            AuthError: It proves nothing.
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

    def holds(self, who: Identity) -> bool:
        """Whether the token that `who` was taken from has not been revoked since."""
        return not self.revoked.refuses(who.token_id, who.user, who.issued)

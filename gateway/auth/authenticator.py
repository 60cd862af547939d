"""Composes what a node needs to verify tokens: the keys, the key server, and the revoked tokens."""

from __future__ import annotations

from collections.abc import Callable

from gateway.auth.centrifugo_claims import CentrifugoClaims
from gateway.auth.jwks_client import JwksClient
from gateway.auth.key_set import KeySet
from gateway.auth.revocations import RevocationStore
from gateway.auth.token_verifier import TokenVerifier
from gateway.broker.client import RedisClient
from gateway.broker.keys import Keys
from gateway.core.identity import Identity, KeyServerUnavailable, UnknownKey
from gateway.metrics import Metrics
from gateway.settings import Settings


class Authenticator:
    """The authenticator with its keys and revocations. `now` returns seconds since 1970."""

    def __init__(
        self, settings: Settings, token_keys: KeySet, redis: RedisClient, keys: Keys, metrics: Metrics,
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        self.revocation_store = RevocationStore(redis, keys, now, settings.jwt_leeway_seconds)
        self._jwks_client: JwksClient | None = None
        if settings.jwks_url:
            self._jwks_client = JwksClient(
                settings.jwks_url, token_keys, metrics, refresh_seconds=settings.jwks_seconds
            )
        self.verifier = TokenVerifier(
            token_keys, audience=settings.jwt_audience, issuer=settings.jwt_issuer,
            leeway_seconds=settings.jwt_leeway_seconds, revoked=self.revocation_store.is_revoked, now=now,
            centrifugo=CentrifugoClaims(settings.centrifugo_exp == "required", settings.centrifugo_personal)
            if settings.centrifugo else None,
        )  # fmt: skip

    @property
    def unready_reason(self) -> str | None:
        """Why the node cannot verify tokens now; None: it can."""
        if not self.revocation_store.known:
            return "revocations: not yet read from Redis"
        return self._jwks_client.reason if self._jwks_client is not None else None

    async def run(self) -> None:
        """Keep the keys of the key server fresh, forever. Returns at once if there is no key server."""
        if self._jwks_client is not None:
            await self._jwks_client.run()

    async def refresh_keys(self, kid: str) -> bool:
        """Ask the key server for the key `kid`. False if it did not answer; see `JwksClient.refresh`."""
        return self._jwks_client is None or await self._jwks_client.refresh(kid)

    async def identify(self, token: str) -> Identity:
        """Verify `token` and return its identity. If the token names an unknown key, this asks the key server first.

        Raises:
            KeyServerUnavailable: The key server did not answer.
            AuthError: The token is invalid.
        """
        try:
            return self.verifier.verify(token)
        except UnknownKey as unknown:
            asked = await self.refresh_keys(unknown.kid)
        try:
            return self.verifier.verify(token)
        except UnknownKey:
            if asked:
                raise
            raise KeyServerUnavailable(
                "token_invalid", "The key server does not answer, so the token cannot be verified; try again"
            ) from None

    def is_valid(self, identity: Identity) -> bool:
        """Whether the token of `identity` has not been revoked since its verification."""
        return not self.revocation_store.is_revoked(identity.token_id, identity.user, identity.issued)

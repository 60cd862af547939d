"""Asks the back end for permissions on topics whose rule says `ask`, and caches its answers for their `max-age`.

If the back end does not answer, the verdict is `UNKNOWN`: the node refuses the act, and the client may retry.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from gateway.backend import Backend, BackendError
from gateway.core.identity import Identity
from gateway.core.permissions import Verdict
from gateway.core.topic_rules import Act
from gateway.metrics import Metrics

PATH: Final = "/permissions"
MAX_CACHED: Final = 50_000  # answers; beyond it, the least recently used one is dropped
MAX_AGE_SECONDS: Final = 86_400.0

_Key = tuple[str, str, str | None, str | None]  # act, topic, user, role


class PermissionChecker:
    """Asks `backend`, if there is one. Clients with the same question share one call."""

    def __init__(self, backend: Backend | None, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics
        self._cached: OrderedDict[_Key, tuple[Verdict, float]] = OrderedDict()  # with its end, in loop time
        self._asking: dict[_Key, asyncio.Future[Verdict]] = {}

    async def check(self, act: Act, topics: Sequence[str], identity: Identity) -> dict[str, Verdict]:
        """Ask whether `identity` may `act` on `topics`. Each verdict is `ALLOWED`, `REFUSED` or `UNKNOWN`."""
        keys: dict[str, _Key] = {topic: (act, topic, identity.user, identity.role) for topic in topics}
        known = {topic: verdict for topic, key in keys.items() if (verdict := self._look_up(key)) is not None}
        waiting = {
            topic: self._asking[key] for topic, key in keys.items() if topic not in known and key in self._asking
        }
        new = [topic for topic in topics if topic not in known and topic not in waiting]
        self._metrics.permissions.labels("remembered").inc(len(known))
        if new:
            known |= await self._ask({topic: keys[topic] for topic in new}, act, identity)
        for topic, asked in waiting.items():
            known[topic] = await asyncio.shield(asked)  # a cancelled caller must not cancel the shared call
        return known

    def _look_up(self, key: _Key) -> Verdict | None:
        verdict, until = self._cached.get(key, (None, 0.0))
        if verdict is None:
            return None
        if until <= asyncio.get_running_loop().time():
            del self._cached[key]
            return None
        self._cached.move_to_end(key)
        return verdict

    async def _ask(self, keys: dict[str, _Key], act: Act, identity: Identity) -> dict[str, Verdict]:
        loop = asyncio.get_running_loop()
        for key in keys.values():
            self._asking[key] = loop.create_future()
        verdicts: dict[str, Verdict] = {}
        try:
            verdicts = await self._call(list(keys.values()), act, list(keys), identity)
        finally:
            for topic, key in keys.items():
                self._asking.pop(key).set_result(verdicts.get(topic, Verdict.UNKNOWN))
        for verdict in verdicts.values():
            self._metrics.permissions.labels(verdict.name.lower()).inc()
        return verdicts

    async def _call(self, keys: list[_Key], act: Act, topics: list[str], identity: Identity) -> dict[str, Verdict]:
        unknown = dict.fromkeys(topics, Verdict.UNKNOWN)
        if self._backend is None:
            return unknown
        question = {"act": act, "topics": topics, "user": identity.user, "role": identity.role}
        try:
            answer = await self._backend.post(PATH, question, idempotent=True)
        except BackendError:  # the backend has logged and counted the error
            return unknown
        allowed = _allowed(answer.body) if answer.is_success else frozenset[str]() if answer.status == 403 else None
        if allowed is None:
            return unknown
        verdicts = {topic: Verdict.ALLOWED if topic in allowed else Verdict.REFUSED for topic in topics}
        if answer.max_age:
            until = asyncio.get_running_loop().time() + min(answer.max_age, MAX_AGE_SECONDS)
            for key, topic in zip(keys, topics, strict=True):
                self._cached[key] = verdicts[topic], until
            while len(self._cached) > MAX_CACHED:
                self._cached.popitem(last=False)
        return verdicts


def _allowed(body: Any) -> frozenset[str] | None:
    match body:
        case {"allowed": list(names)}:
            return frozenset(name for name in names if isinstance(name, str))
    return None

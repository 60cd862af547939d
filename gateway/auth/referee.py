"""Topics whose rule says `ask`: the back end is asked who may what, and its word kept for as long as it says.

Whoever cannot be asked allows nothing: without an answer the verdict is `UNKNOWN`, which is a refusal for now.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from gateway.backend import Backend, BackendError
from gateway.core.identity import Identity
from gateway.core.permits import Verdict
from gateway.core.topics import Act
from gateway.metrics import Metrics

PATH: Final = "/permissions"
MAX_REMEMBERED: Final = 50_000  # answers; the one that was not asked for longest goes
MAX_AGE_SECONDS: Final = 86_400.0

_Key = tuple[str, str, str | None, str | None]  # act, topic, user, role


class Referee:
    """Asks `backend`, if there is one. One question at a time is asked for any number of clients that want to know."""

    def __init__(self, backend: Backend | None, metrics: Metrics) -> None:
        self._backend = backend
        self._metrics = metrics
        self._remembered: OrderedDict[_Key, tuple[Verdict, float]] = OrderedDict()  # until when, in loop time
        self._asking: dict[_Key, asyncio.Future[Verdict]] = {}

    async def judge(self, act: Act, topics: Sequence[str], who: Identity) -> dict[str, Verdict]:
        """What `who` may do on each of `topics`: `ALLOWED`, `REFUSED` or, if that cannot be known now, `UNKNOWN`."""
        keys: dict[str, _Key] = {topic: (act, topic, who.user, who.role) for topic in topics}
        known = {topic: verdict for topic, key in keys.items() if (verdict := self._remember(key)) is not None}
        waiting = {
            topic: self._asking[key] for topic, key in keys.items() if topic not in known and key in self._asking
        }
        new = [topic for topic in topics if topic not in known and topic not in waiting]
        self._metrics.permissions.labels("remembered").inc(len(known))
        if new:
            known |= await self._ask({topic: keys[topic] for topic in new}, act, who)
        for topic, asked in waiting.items():
            known[topic] = await asyncio.shield(asked)  # whoever gives up does not cancel the others' question
        return known

    def _remember(self, key: _Key) -> Verdict | None:
        verdict, until = self._remembered.get(key, (None, 0.0))
        if verdict is None:
            return None
        if until <= asyncio.get_running_loop().time():
            del self._remembered[key]
            return None
        self._remembered.move_to_end(key)
        return verdict

    async def _ask(self, keys: dict[str, _Key], act: Act, who: Identity) -> dict[str, Verdict]:
        loop = asyncio.get_running_loop()
        for key in keys.values():
            self._asking[key] = loop.create_future()
        said: dict[str, Verdict] = {}
        try:
            said = await self._call(list(keys.values()), act, list(keys), who)
        finally:
            for topic, key in keys.items():
                self._asking.pop(key).set_result(said.get(topic, Verdict.UNKNOWN))
        for verdict in said.values():
            self._metrics.permissions.labels(verdict.name.lower()).inc()
        return said

    async def _call(self, keys: list[_Key], act: Act, topics: list[str], who: Identity) -> dict[str, Verdict]:
        unknown = dict.fromkeys(topics, Verdict.UNKNOWN)
        if self._backend is None:
            return unknown
        question = {"act": act, "topics": topics, "user": who.user, "role": who.role}
        try:
            answer = await self._backend.post(PATH, question, idempotent=True)
        except BackendError:  # it has logged and counted that itself
            return unknown
        allowed = _allowed(answer.body) if answer.good else frozenset[str]() if answer.status == 403 else None
        if allowed is None:
            return unknown
        said = {topic: Verdict.ALLOWED if topic in allowed else Verdict.REFUSED for topic in topics}
        if answer.max_age:
            until = asyncio.get_running_loop().time() + min(answer.max_age, MAX_AGE_SECONDS)
            for key, topic in zip(keys, topics, strict=True):
                self._remembered[key] = said[topic], until
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return said


def _allowed(body: Any) -> frozenset[str] | None:
    match body:
        case {"allowed": list(names)}:
            return frozenset(name for name in names if isinstance(name, str))
    return None

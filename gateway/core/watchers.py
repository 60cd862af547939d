"""Who asks whether this node is ready: a drain goes on when each of them has heard that it is not.  (pure)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FALL: Final = 2  # refusals in a row after which HAProxy takes a server out (haproxy.cfg, `fall`)
# Who asks again within the one and goes on for the other is a load balancer, which acts on the answer. A monitor asks
# less often, a person stops, and neither is waited for.
REGULAR_SECONDS: Final = 5.0
STEADY_SECONDS: Final = 0.9  # HAProxy's `inter` is 1 s
MAX_WATCHERS: Final = 64


@dataclass(slots=True)
class _Watcher:
    first: float
    last: float
    refusals: int = 0  # in a row


class Watchers:
    """Each by what tells it from the others: its address and how it calls itself. Times in seconds, of one clock."""

    def __init__(self) -> None:
        self._watchers: dict[str, _Watcher] = {}

    def asked(self, who: str, refused: bool, now: float) -> None:
        """`who` asked, and was `refused`, or was told that the node is ready."""
        self._forget(now)
        watcher = self._watchers.get(who)
        if watcher is None:
            if len(self._watchers) >= MAX_WATCHERS:
                return
            watcher = self._watchers[who] = _Watcher(now, now)
        watcher.last = now
        watcher.refusals = watcher.refusals + 1 if refused else 0

    def told(self, now: float) -> bool:
        """Whether everybody who asks steadily has been refused so often that it sends no new clients."""
        self._forget(now)
        steady = [watcher for watcher in self._watchers.values() if watcher.last - watcher.first >= STEADY_SECONDS]
        return all(watcher.refusals >= FALL for watcher in steady)

    def _forget(self, now: float) -> None:
        for who in [who for who, watcher in self._watchers.items() if now - watcher.last > REGULAR_SECONDS]:
            del self._watchers[who]

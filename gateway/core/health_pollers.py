"""The load balancers that poll this node's health: a drain waits until all know that it is not ready.  (pure)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAILED_CHECKS: Final = 2  # failed checks in a row after which HAProxy disables a server (haproxy.cfg, `fall`)
# A load balancer polls at least every REGULAR_SECONDS, for longer than STEADY_SECONDS. The drain does not wait for
# other pollers: a monitor polls less often, and a person stops soon.
REGULAR_SECONDS: Final = 5.0
STEADY_SECONDS: Final = 0.9  # HAProxy's `inter` is 1 s
MAX_POLLERS: Final = 64


@dataclass(slots=True)
class _Poller:
    first: float
    last: float
    refusals: int = 0  # "not ready" answers in a row


class HealthPollers:
    """The pollers, each identified by its address and user agent. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._watchers: dict[str, _Poller] = {}

    def polled(self, poller: str, refused: bool, now: float) -> None:
        """Record a poll by `poller`. `refused`: the answer was "not ready"."""
        self._forget(now)
        watcher = self._watchers.get(poller)
        if watcher is None:
            if len(self._watchers) >= MAX_POLLERS:
                return
            watcher = self._watchers[poller] = _Poller(now, now)
        watcher.last = now
        watcher.refusals = watcher.refusals + 1 if refused else 0

    def all_notified(self, now: float) -> bool:
        """Whether each load balancer has received so many "not ready" answers that it sends no new clients."""
        self._forget(now)
        steady = [watcher for watcher in self._watchers.values() if watcher.last - watcher.first >= STEADY_SECONDS]
        return all(watcher.refusals >= FAILED_CHECKS for watcher in steady)

    def _forget(self, now: float) -> None:
        for poller in [poller for poller, watcher in self._watchers.items() if now - watcher.last > REGULAR_SECONDS]:
            del self._watchers[poller]

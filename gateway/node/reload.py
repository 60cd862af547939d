"""Reload on all nodes: each node checks its files first; only if all are valid and equal does each apply them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final, Protocol

from gateway.broker.client import Unavailable
from gateway.core.control_messages import ReloadReport
from gateway.logging import logger
from gateway.node.configuration import Configuration, LiveConfiguration

REPORT_SECONDS: Final = 3.0  # how long the node that coordinates a reload waits for the reports of a step
MAX_REPORTS: Final = 10_000  # of one step; there are at most as many nodes


class ReloadRefused(Exception):
    """A reload is not carried out, or not by every node. The message says which node and why."""


class _Broadcast(Protocol):
    async def __call__(self, op: str, **about: object) -> None:
        """Publish a control message to every node."""


class Reloader:
    """Reloads the configuration of this node, and coordinates the reload of all nodes.

    `read` reads this node's configuration from its files; it raises ValueError. `node_ids` returns the living nodes.
    """

    def __init__(
        self, node_id: str, live: LiveConfiguration, *, read: Callable[[], Awaitable[Configuration]],
        broadcast: _Broadcast, node_ids: Callable[[], Awaitable[Collection[str]]],
    ) -> None:  # fmt: skip
        self._node_id = node_id
        self._live = live
        self._read = read
        self._broadcast = broadcast
        self._node_ids = node_ids
        self._checked: tuple[str, Configuration] | None = None  # the last check of this node, and what it read
        self._reports: dict[tuple[str, str], dict[str, ReloadReport]] = {}  # by request and step; only while one waits
        self._reported = asyncio.Condition()
        self._applying = asyncio.Lock()

    async def reload_node(self) -> None:
        """Reload this node alone. Invalid files change nothing and are logged."""
        try:
            configuration = await self._read()
        except ValueError as error:
            logger().error("configuration not reloaded", reason=str(error))
            return
        async with self._applying:
            await self._live.replace(configuration)

    async def reload_all(self) -> list[str]:
        """Reload all living nodes. Returns their ids.

        Raises:
            ReloadRefused: A node's files are invalid or differ from the others', or it did not report in time; then no
                node has changed. Or a node did not report that it has applied them; then run it again.
            Unavailable: Redis did not answer.
        """
        nodes, request = set(await self._node_ids()) | {self._node_id}, secrets.token_hex(8)
        checked = await self._step("check", request, nodes)
        if missing := nodes - checked.keys():
            raise ReloadRefused(f"{_listed(missing)} did not report in {REPORT_SECONDS:g} s; nothing has changed")
        if failed := {node: report.error for node, report in checked.items() if report.error}:
            reasons = "; ".join(f"{node}: {error}" for node, error in sorted(failed.items()))
            raise ReloadRefused(f"{reasons}; nothing has changed")
        if len({report.digest for report in checked.values()}) > 1:
            digests = "; ".join(f"{node}: {report.digest}" for node, report in sorted(checked.items()))
            raise ReloadRefused(
                f"the nodes read different topic rules or API keys ({digests}); give all of them the same files; "
                "nothing has changed"
            )
        applied = await self._step("apply", request, nodes)
        if missing := nodes - applied.keys():
            raise ReloadRefused(f"{_listed(missing)} did not report the change; the others have it; reload again")
        return sorted(nodes)

    async def _step(self, step: str, request: str, nodes: set[str]) -> dict[str, ReloadReport]:
        reports = self._reports[request, step] = {}
        try:
            await self._broadcast(f"{step}_reload", request=request)
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_SECONDS), self._reported:
                    await self._reported.wait_for(lambda: nodes <= reports.keys())
            return {node: report for node, report in reports.items() if node in nodes}
        finally:
            del self._reports[request, step]

    # ---- control messages

    async def check(self, request: str) -> None:
        """Read this node's files, keep what was read for `apply`, and report."""
        digest, error = "", ""
        try:
            configuration = await self._read()
        except ValueError as invalid:
            error = str(invalid)
        else:
            self._checked, digest = (request, configuration), configuration.digest
        await self._report(request, "check", digest, error)

    async def apply(self, request: str) -> None:
        """Use what the check of `request` has read, and report. Without that check, do nothing."""
        async with self._applying:
            if self._checked is None or self._checked[0] != request:
                return
            configuration, self._checked = self._checked[1], None
            await self._live.replace(configuration)
        await self._report(request, "apply", configuration.digest, "")

    async def _report(self, request: str, step: str, digest: str, error: str) -> None:
        with suppress(Unavailable):  # the coordinator notices that the report is missing
            await self._broadcast(
                "reload_report", request=request, step=step, node=self._node_id, digest=digest, error=error[:1000]
            )

    async def report_received(self, report: ReloadReport) -> None:
        """Handle the report of a node, this one included."""
        reports = self._reports.get((report.request, report.step))
        if reports is not None and len(reports) < MAX_REPORTS:
            reports[report.node] = report
            async with self._reported:
                self._reported.notify_all()


def _listed(nodes: Collection[str]) -> str:
    return ", ".join(sorted(nodes))

"""`gateway haproxy-sync`: keeps HAProxy's servers equal to the nodes of the registry, over HAProxy's runtime socket."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from gateway.cli.command import CommandFailure, CommandMisuse
from gateway.cli.tables import print_text
from gateway.core.haproxy_slots import (
    UNUSED_ADDRESS,
    AssignSlot,
    HaproxyServer,
    ListedNode,
    SlotChange,
    slot_changes,
    statistics_rows,
)
from gateway.settings import Settings, SettingsError

if TYPE_CHECKING:
    from gateway.cluster.registry import Registry

STEP_SECONDS: Final = 5.0  # the deadline of each request to Redis, a name server or HAProxy
PATIENCE_SECONDS: Final = 60.0


class SyncError(Exception):
    """A step failed. The message is one sentence. The next pass retries the step."""


class RuntimeSocket:
    """HAProxy's runtime socket at `path`, for one backend."""

    def __init__(self, path: Path, backend: str) -> None:
        self._path = path
        self._backend = backend

    async def servers(self) -> list[HaproxyServer]:
        """The servers of the backend.

        Raises:
            SyncError: HAProxy does not answer, or has no such backend.
        """
        text = await self._ask(f"show stat {self._backend} 4 -1")
        rows = statistics_rows(text)
        if not rows or "svname" not in rows[0]:
            raise SyncError(f"HAProxy has no servers in a backend {self._backend}: {text.strip()[:200]}")
        return [HaproxyServer(row["svname"], row["addr"], row["status"], float(row["lastchg"] or 0)) for row in rows]

    async def carry_out(self, change: SlotChange) -> None:
        """Make one change. `servers` shows its result.

        Raises:
            SyncError: HAProxy does not answer.
        """
        server = f"{self._backend}/{change.server}"
        fill = isinstance(change, AssignSlot)
        host, _, port = (change.address if fill else UNUSED_ADDRESS).rpartition(":")
        set_address = f"set server {server} addr {host.strip('[]')} port {port}"
        # In this order a server never accepts clients with the wrong address.
        if fill:
            steps = [set_address, f"set server {server} state ready"]
        else:
            steps = [f"set server {server} state maint", set_address]
        await self._ask("; ".join(steps))

    async def state(self) -> str:
        """The state of the servers, which a new HAProxy worker loads after a reload.

        Raises:
            SyncError: HAProxy does not answer.
        """
        return await self._ask(f"show servers state {self._backend}")

    async def _ask(self, command: str) -> str:
        try:
            async with asyncio.timeout(STEP_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    writer.write(f"{command}\n".encode())
                    return (await reader.read()).decode(errors="replace")
                finally:
                    writer.close()
        except OSError as error:
            raise SyncError(f"HAProxy at {self._path}: {str(error) or 'no answer'}") from error


class HaproxySync:
    """Compares the registry with HAProxy and makes the necessary changes. Its only state is the printed messages."""

    def __init__(
        self, registry: Registry, runtime: RuntimeSocket, state: Path, *, own: str, patience_seconds: float
    ) -> None:
        self._registry = registry
        self._runtime = runtime
        self._state = state
        self._own = own
        self._patience_seconds = patience_seconds
        self._printed: set[str] = set()

    async def run(self, every_seconds: float) -> None:
        """Make one pass after another, forever. A failed step is printed once and retried."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                trouble = await self.once()
            except SyncError as fault:
                trouble = [str(fault)]
            for sentence in trouble:
                if sentence not in self._printed:
                    click.echo(sentence, err=True)
            self._printed = set(trouble)
            await asyncio.sleep(max(0.0, started + every_seconds - loop.time()))

    async def once(self) -> list[str]:
        """Make one pass. Returns a sentence for each step that failed.

        Raises:
            SyncError: Redis or HAProxy did not answer, so the pass ended.
        """
        nodes, trouble = await self._nodes()
        made, without_slot = slot_changes(
            nodes, await self._runtime.servers(), own=self._own, patience_seconds=self._patience_seconds
        )
        for change in made:
            await self._runtime.carry_out(change)
        if made:
            after = {server.name: server for server in await self._runtime.servers()}
            for change in made:
                trouble += _log_change(change, after[change.server])
        await asyncio.to_thread(_replace, self._state, await self._runtime.state())
        return trouble + without_slot

    async def _nodes(self) -> tuple[list[ListedNode], list[str]]:
        """The living nodes with numeric addresses, and a sentence for each node whose address cannot be used."""
        from gateway.broker.client import Unavailable

        try:
            rows = await self._registry.nodes()
        except Unavailable as error:
            raise SyncError(f"Redis: {error}") from None
        found, trouble = [], []
        for row in rows:
            try:
                found.append(ListedNode(row["id"], await _numeric(row["address"]), row["ready"]))
            except (OSError, ValueError) as error:
                trouble.append(
                    f"{row['id']} advertises {row['address']}, which cannot be reached from here ({error}): "
                    "set its GATEWAY_ADVERTISE"
                )
        return found, trouble


async def _numeric(address: str) -> str:
    """`address` with its host resolved to an IP address.

    Raises:
        OSError, ValueError: The host cannot be resolved, or is the unspecified address.
    """
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        async with asyncio.timeout(STEP_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, int(port))
        ip = ipaddress.ip_address(found[0][4][0])
    if ip.is_unspecified:
        raise ValueError("it means all addresses of its host")
    return f"[{ip}]:{int(port)}" if ip.version == 6 else f"{ip}:{int(port)}"


def _log_change(change: SlotChange, server: HaproxyServer) -> Iterable[str]:
    """Print a change that HAProxy has made. Yields a sentence if HAProxy has not made it."""
    wanted = change.address if isinstance(change, AssignSlot) else UNUSED_ADDRESS
    if server.address != wanted or server.status.startswith("MAINT") is isinstance(change, AssignSlot):
        yield f"HAProxy did not change {server.name}: it is {server.status} at {server.address}, not at {wanted}"
    elif isinstance(change, AssignSlot):
        print_text(f"{server.name} leads to {change.node} ({change.address}).")
    else:
        print_text(f"{server.name} is free: {change.address} is down and not in the registry.")


def _replace(file: Path, text: str) -> None:
    """Write `file` atomically, since HAProxy may read it at any moment."""
    new = file.with_name(f"{file.name}.new")
    try:
        new.write_text(text.lstrip())
        new.replace(file)
    except OSError as error:
        raise SyncError(f"{file}: {error}") from error


@click.command("haproxy-sync")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=lambda: Path(os.environ.get("LB_RUN") or "/tmp") / "haproxy.sock",  # noqa: S108  haproxy.cfg's own default
    show_default="haproxy.sock in LB_RUN, or in /tmp",
    help="HAProxy's runtime socket. The state for a reload is stored beside it, with the suffix .state",
)
@click.option("--backend", default="gw", show_default=True)
@click.option(
    "--slots", default="slot", show_default=True, help="The prefix of the servers to manage, before a number."
)
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option(
    "--patience",
    type=click.FloatRange(0),
    default=PATIENCE_SECONDS,
    show_default=True,
    help="Seconds that a server must be down before its slot is freed.",
)
@click.option("--once", is_flag=True, help="Make one pass and exit, with code 1 if a step failed.")
def haproxy_sync(socket: Path, backend: str, slots: str, interval: float, patience: float, once: bool) -> None:
    """Keep HAProxy's servers equal to the nodes of the registry.

    Run it beside HAProxy (started with GW_SLOTS), with the GATEWAY_REDIS_URL and GATEWAY_NAMESPACE of the nodes. A
    ready node gets a slot. The slot is freed when the node has left the registry and HAProxy has found it down for a
    while. Open sockets are never closed. Servers with other names do not change.
    """
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        raise CommandMisuse(str(error)) from None

    def sync(registry: Registry) -> HaproxySync:
        runtime, state = RuntimeSocket(socket, backend), socket.with_suffix(".state")
        return HaproxySync(registry, runtime, state, own=slots, patience_seconds=patience)

    try:
        trouble = asyncio.run(_run(settings, sync, None if once else interval))
    except SyncError as fault:
        raise CommandFailure(str(fault)) from None
    if trouble:
        raise CommandFailure("\n".join(trouble))


async def _run(settings: Settings, make: Callable[[Registry], HaproxySync], every_seconds: float | None) -> list[str]:
    """Make one pass and return a sentence for each failed step; or passes `every_seconds` until SIGTERM or SIGINT."""
    from gateway.broker.client import RedisClient
    from gateway.broker.keys import Keys
    from gateway.cluster.registry import LocalState, Registry
    from gateway.metrics import Metrics

    metrics = Metrics()
    redis = RedisClient(
        settings.redis_url, timeout_seconds=settings.redis_timeout_seconds, name="haproxy-sync", metrics=metrics
    )
    nothing = LocalState(
        dict, lambda _: None, tuple, lambda _: 0, tuple
    )  # this process is not a node, and has nothing to register
    sync = make(Registry(redis, Keys(settings.namespace), "", lease_seconds=1, local_state=nothing, metrics=metrics))
    try:
        if every_seconds is None:
            return await sync.once()
        running = asyncio.ensure_future(sync.run(every_seconds))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        with suppress(asyncio.CancelledError):
            await running
        return []
    finally:
        await redis.close()

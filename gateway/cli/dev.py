"""The command that runs a cluster for development."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from gateway.cli.command import CommandFailure
from gateway.dev import DevCluster, DevError

MAX_NODES = 16


@click.command()
@click.option("--nodes", type=click.IntRange(1, MAX_NODES), default=1, show_default=True, help="Number of nodes.")
@click.option(
    "--port", type=click.IntRange(1, 65535 - MAX_NODES), default=8080, show_default=True,
    help="Port of the first node; the others have the next ones.",
)  # fmt: skip
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Folder that keeps messages.")
def dev(nodes: int, port: int, data: Path | None) -> None:
    """Run a development cluster with its own Valkey, until Ctrl-C.

    It is not for production: there is no load balancer, nothing restarts a process, and without --data all messages are
    lost at the end. GATEWAY_ variables set the nodes' settings; by default every client may do everything
    (GATEWAY_OPEN=1), so the nodes listen on 127.0.0.1 only.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # shells start background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    try:
        with DevCluster(nodes, port, data) as cluster:
            click.echo(_welcome(cluster, data))
            cluster.watch()
    except DevError as error:
        raise CommandFailure(str(error)) from None
    except KeyboardInterrupt:
        click.echo("Stopped.")


def _welcome(cluster: DevCluster, data: Path | None) -> str:
    more = "".join(f"\n  another  {url}/" for url in cluster.urls[1:])
    kept = f"messages are kept in {data}" if data else "all messages are lost at the end"
    return f"""A cluster for development runs: no load balancer, and {kept}.

  page     {cluster.url}/{more}
  socket   {cluster.ws_url}
  Redis    {cluster.redis_url}
  logs     {cluster.folder}/*.log

To publish:

  curl {cluster.url}/api/publish -H "Authorization: Bearer {cluster.api_key}" \\
    -d '{{"topic": "news", "data": {{"text": "hello"}}}}'

Ctrl-C stops it."""

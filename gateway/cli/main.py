"""The ``gateway`` command: run a node, publish, inspect and control the cluster, make tokens, check the cluster.

Commands print tables for people. With ``--json`` they print one JSON document for scripts. An error is one sentence on
standard error with exit code 1, or 2 if the command or a setting is wrong.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from gateway import __version__
from gateway.auth.api_keys import ApiKeysError
from gateway.auth.key_set import InvalidKey
from gateway.cli.api_client import ApiClient
from gateway.cli.checks import checks, state_of
from gateway.cli.command import CommandMisuse, Steps, api_command
from gateway.cli.credentials import COMMANDS
from gateway.cli.dev import dev
from gateway.cli.haproxy_sync import haproxy_sync
from gateway.cli.tables import age, print_fields, print_table, print_text
from gateway.core import dependency_graph, json_text, rebalancing
from gateway.core.topic_rules import RulesError
from gateway.settings import Settings, SettingsError


def main() -> None:
    """The ``gateway`` command."""
    cli(prog_name="gateway")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """A cluster of WebSocket gateways."""


for command in (*COMMANDS, haproxy_sync, dev):
    cli.add_command(command)


# ---- one node


@cli.command()
@click.pass_context
def serve(context: click.Context) -> None:
    """Run one node until SIGTERM or SIGINT.

    Its settings are the GATEWAY_ environment variables; docs/reference/settings.md lists them.
    """
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        raise CommandMisuse(str(error)) from None
    # Imported here, because loading Starlette, uvicorn and redis takes longer than all that other commands need.
    from gateway.server import serve as run

    try:
        code = run(settings)
    except (RulesError, InvalidKey, ApiKeysError, SettingsError) as error:  # a file that a setting names
        raise CommandMisuse(str(error)) from None
    context.exit(code)


# ---- the cluster


@cli.command()
@click.argument("topic")
@click.argument("data")
@click.option("--text", is_flag=True, help="DATA is plain text, not JSON.")
@click.option("--action", help="Delivered beside the data, like the next two.")
@click.option("--subtype")
@click.option("--priority", help="A number, or a word.")
@click.option("--user", help="Only to clients of this user, subscribed or not.")
@click.option("--role", help="Only to clients of this role.")
@click.option("--client", help="Only to this client.")
@click.option("--except", "besides", metavar="CLIENT", help="To all subscribers of the topic except this client.")
@api_command
def publish(
    api_client: ApiClient,
    topic: str,
    data: str,
    text: bool,
    besides: str | None,
    priority: str | None,
    **more: str | None,
) -> Steps:
    """Publish DATA on TOPIC.

    DATA is JSON, or any text with --text. The argument - reads it from standard input. Write --
    before data that begins with a dash, as in: gateway publish price -- -5
    """
    to = {kind: name for kind in ("user", "role", "client") if (name := more.pop(kind)) is not None}
    if len(to) + (besides is not None) > 1:
        raise click.UsageError("Give at most one of --user, --role, --client and --except.")
    message: dict[str, Any] = {"topic": topic, "data": _data(data, text)}
    message |= {**more, "priority": _number_or_word(priority), "to": to or None, "except": besides}
    yield api_client.publish({name: value for name, value in message.items() if name == "data" or value is not None})
    print_text(f"Published on {topic}.")


def _data(given: str, text: bool) -> Any:
    raw = sys.stdin.buffer.read() if given == "-" else given.encode()
    try:
        return raw.decode().removesuffix("\n") if text else json_text.loads(raw)
    except UnicodeDecodeError:
        raise click.UsageError("DATA is not UTF-8.") from None
    except ValueError as error:
        raise click.UsageError(f"DATA is not JSON ({error}); use --text for plain text.") from None


def _number_or_word(given: str | None) -> float | str | None:
    with suppress(ValueError):
        number = json_text.loads((given or "").encode())
        if isinstance(number, int | float) and not isinstance(number, bool):
            return number
    return given


@cli.command()
@api_command
def nodes(api_client: ApiClient) -> Steps:
    """List the living nodes, with their clients and topics."""
    found = api_client.nodes()
    yield found
    print_table(
        ["node", "state", "clients", "topics", "version", "up", "address"],
        [
            [n["id"], _state(n), n["clients"], n["topics"], n["version"], age(n["started"], time.time()), n["address"]]
            for n in found["nodes"]
        ],
        keep=4,
        none="There are no nodes.",
    )


def _state(node: Mapping[str, Any]) -> Text:
    state = state_of(node)
    style = {"ready": "green", "draining": "yellow"}.get(state, "red")
    return Text(f"{state}, moving clients" if node.get("moving") else state, style)


@cli.command()
@click.argument("client_id", metavar="[ID]", required=False)
@click.option("--user", help="Only clients of this user.")
@click.option("--ip", help="Only clients with this address.")
@click.option("--topic", help="Only clients that are subscribed to this topic.")
@click.option("--node", help="Only clients on this node, given by name or id.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="The most clients to list.")
@click.option("--cursor", metavar="ID", help="Only clients after this one: `next` of an incomplete answer.")
@api_command
def clients(
    api_client: ApiClient, client_id: str | None, limit: int, cursor: str | None, **filters: str | None
) -> Steps:
    """List the connected clients, or show the client ID."""
    if client_id is not None:
        if any(given is not None for given in (cursor, *filters.values())):
            raise click.UsageError("ID names one client: remove the filters and --cursor.")
        client = api_client.client(client_id)
        yield client
        print_fields({**client, "topics": ", ".join(client["topics"])})
        return
    found = api_client.clients({**filters}, limit, cursor)
    yield found
    print_table(
        ["client", "user", "topics", "for", "ip", "role"],
        [
            [c["id"], c["user"] or "-", len(c["topics"]), age(c["connectedAt"], time.time()), c["ip"], c["role"] or "-"]
            for c in found["clients"]
        ],
        keep=3,
        none="There are no clients.",
    )
    if found["next"] is not None:
        click.echo(f"Only the first {limit} are listed; raise --limit to list more.", err=True)


@cli.command()
@click.argument("topic", required=False)
@click.option("--contains", metavar="TEXT", help="Only topics with this text in their name.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="The most topics to list.")
@click.option("--after", metavar="TOPIC", help="Only topics after this name: `next` of an incomplete answer.")
@api_command
def topics(api_client: ApiClient, topic: str | None, contains: str | None, limit: int, after: str | None) -> Steps:
    """List topics and subscribers, or those of TOPIC by node."""
    if topic is not None:
        if contains is not None or after is not None:
            raise click.UsageError("TOPIC names one topic: remove --contains and --after.")
        one = api_client.topic(topic)
        yield one
        print_table(["node", "clients"], list(one["nodes"].items()), none=f"No client is subscribed to {topic}.")
        return
    found = api_client.topics(limit, after, contains)
    yield found
    rows = [[row["topic"], row["subscribers"], len(row["nodes"])] for row in found["topics"]]
    none = "No client is subscribed to any topic." if contains is None and after is None else "No topic matches."
    print_table(["topic", "clients", "nodes"], rows, none=none)
    if found.get("next") is not None:
        click.echo(f"Only the first {limit} are listed; raise --limit to list more.", err=True)


@cli.command()
@click.argument("name", metavar="[SERVICE]", required=False)
@click.option("--graph", is_flag=True, help="Show the dependencies as a tree.")
@api_command
def services(api_client: ApiClient, name: str | None, graph: bool) -> Steps:
    """List the background services, or the instances of SERVICE."""
    if name is not None:
        if graph:
            raise click.UsageError("The graph shows all services: give either SERVICE or --graph.")
        service = api_client.service(name)
        yield service
        rows = [[i["instance"], _status(i["status"]), _note(i)] for i in service["instances"]]
        print_table(["instance", "status", ""], rows, none="The service has no instances.")
        for title in ("dependencies", "dependants"):
            listed = ", ".join(f"{other['service']} ({other['status'] or 'unknown'})" for other in service[title])
            print_text(f"{title}: {listed or 'none'}")
        return
    found = api_client.services()
    yield found
    known = {service["service"]: service for service in found["services"]}
    if graph:
        needs = {other: service["dependsOn"] for other, service in known.items()}
        tree = list(dependency_graph.tree_lines(needs, lambda other: _branch(other, known.get(other))))
        print_text("\n".join(tree) or "There are no services.")
        return
    print_table(
        ["service", "status", "instances", "running", "last error"],
        [
            [s["service"], _status(s["status"]), len(s["instances"]), s["running"], s["lastError"] or "-"]
            for s in found["services"]
        ],
        keep=4,
        none="There are no services.",
    )


def _status(status: str) -> Text:
    styles = {"active": "green", "error": "red", "offline": "red", "stopped": "dim", "disabled": "dim"}
    return Text(status, styles.get(status, "yellow"))


def _note(instance: Mapping[str, Any]) -> str:
    """The reason for an instance's status, or its last operation."""
    if instance.get("waitsFor"):
        return f"waits for {instance['waitsFor']}"
    if instance.get("standby"):
        return "standby"
    return instance.get("lastError") or instance.get("lastOperation") or ""


def _branch(name: str, service: Mapping[str, Any] | None) -> str:
    if service is None:
        return f"{name}  unknown"
    waits = sorted({i["waitsFor"] for i in service["instances"] if i.get("waitsFor")})
    why = f", waits for {', '.join(waits)}" if waits else ""
    return f"{name}  {service['status']}{why}"


@cli.command()
@click.option("--client", metavar="ID", help="This client.")
@click.option("--user", help="All clients of this user.")
@api_command
def disconnect(api_client: ApiClient, client: str | None, user: str | None) -> Steps:
    """Close the socket of a client, or all sockets of a user.

    They may be on any node. The close code is 3503: the client must not reconnect.
    """
    if client is not None and user is None:
        done = api_client.disconnect_client(client)
    elif user is not None and client is None:
        done = api_client.disconnect_user(user)
    else:
        raise click.UsageError("Give either --client or --user.")
    yield done
    print_text("\n".join(f"Disconnected {gone}." for gone in done["disconnected"]) or f"{user} has no clients.")


@cli.command()
@click.argument("client_id", metavar="ID")
@click.argument("topic")
@api_command
def unsubscribe(api_client: ApiClient, client_id: str, topic: str) -> Steps:
    """Unsubscribe the client ID from TOPIC and notify it."""
    yield api_client.unsubscribe(client_id, topic)
    print_text(f"Unsubscribed {client_id} from {topic}.")


@cli.command()
@click.argument("node")
@api_command
def drain(api_client: ApiClient, node: str) -> Steps:
    """Have NODE close its clients and exit.

    NODE is a name or an id. It closes a few clients at a time. The supervisor of the node restarts it.
    """
    done = api_client.drain(node)
    yield done
    print_text("\n".join(f"{node_id} is draining." for node_id in done["draining"]))


@cli.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0, rebalancing.MAX_SECONDS),
    default=rebalancing.SECONDS,
    show_default=True,
    help="Spread the closes over this time.",
)
@api_command
def rebalance(api_client: ApiClient, seconds: float) -> Steps:
    """Move clients from nodes above the mean to the others.

    Use it after adding a node. The clients are notified and closed with code 3011. The load
    balancer sends them to another node when they reconnect.
    """
    done = api_client.rebalance(seconds)
    yield done
    for move in done["moves"]:
        print_text(f"{move['node']} moves {move['clients']} clients.")
    if not done["moves"]:
        print_text("The clients are balanced, so no client moves.")
    elif done["after"]:
        print_text(f"The moves begin in {done['after']:.0f} s: the load balancer fills a new node slowly at first.")


@cli.command()
@api_command
def reload(api_client: ApiClient) -> Steps:
    """Have every node read its topic rules and keys again.

    Each node checks its files first: GATEWAY_TOPICS, GATEWAY_API_KEYS, GATEWAY_JWT_PEM and the files of the secrets.
    If one is invalid, or differs between the nodes, no node changes.
    """
    done = api_client.reload()
    yield done
    print_text("\n".join(f"{node_id} has reloaded." for node_id in done["reloaded"]))


@cli.command()
@api_command
def check(api_client: ApiClient) -> Steps:
    """Check the settings, the API, Redis and every node.

    The command fails if a check fails. It checks the settings in this environment.
    """
    made = checks(api_client, os.environ)
    yield {"ok": all(one.ok for one in made), "checks": [asdict(one) for one in made]}
    states = {True: Text("ok", "green"), False: Text("failed", "red"), None: Text("skipped", "yellow")}
    rows = [[one.check, states[one.ok], "\n-> ".join(filter(None, (one.found, one.todo)))] for one in made]
    print_table(["check", "state", "found"], rows)

"""Commands for people: run a node; publish, see and direct the cluster; tokens; is everything well?

Tables are for eyes, and plain when nobody looks; ``--json`` is for scripts: one document, nothing else on standard
output. What fails is one sentence on standard error: exit code 1, or 2 if the command itself was wrong.
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
from gateway.auth.apikeys import KeysError
from gateway.auth.keyring import KeyFault
from gateway.cli.checks import checks, state_of
from gateway.cli.commands import Misuse, Steps, speaking
from gateway.cli.credentials import COMMANDS
from gateway.cli.haproxy import haproxy_sync
from gateway.cli.remote import Remote
from gateway.cli.tables import age, print_fields, print_table, print_text
from gateway.core import balance, dependencies, protocol
from gateway.core.topics import RulesError
from gateway.settings import Settings, SettingsError


def main() -> None:
    """The ``gateway`` command."""
    cli(prog_name="gateway")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """A cluster of WebSocket gateways."""


for command in (*COMMANDS, haproxy_sync):
    cli.add_command(command)


# ---- one node


@cli.command()
@click.pass_context
def serve(context: click.Context) -> None:
    """Run one node until it is told to stop.

    Its settings are GATEWAY_ variables; the README lists them.
    """
    try:
        settings = Settings.from_env(os.environ)
    except SettingsError as error:
        raise Misuse(str(error)) from None
    # Here, because with Starlette, uvicorn and redis it takes longer to load than all that the other commands need.
    from gateway.server import serve as run

    try:
        code = run(settings)
    except (RulesError, KeyFault, KeysError, SettingsError) as error:  # a file that a setting names
        raise Misuse(str(error)) from None
    context.exit(code)


# ---- the cluster


@cli.command()
@click.argument("topic")
@click.argument("data")
@click.option("--text", is_flag=True, help="DATA is plain text, not JSON.")
@click.option("--action", help="Travels beside the data; so do the next two.")
@click.option("--subtype")
@click.option("--priority", help="A number, or a word.")
@click.option("--user", help="Only to this user's clients, subscribed or not.")
@click.option("--role", help="Only to clients of this role.")
@click.option("--client", help="Only to this client.")
@click.option("--except", "besides", metavar="CLIENT", help="To all subscribers of the topic but this client.")
@speaking
def publish(
    remote: Remote, topic: str, data: str, text: bool, besides: str | None, priority: str | None, **more: str | None
) -> Steps:
    """Publish DATA on TOPIC.

    DATA is JSON, or with --text any text; a lone - reads it from standard input. What begins
    with a dash stands behind a lone --, as in: gateway publish price -- -5
    """
    to = {kind: name for kind in ("user", "role", "client") if (name := more.pop(kind)) is not None}
    if len(to) + (besides is not None) > 1:
        raise click.UsageError("--user, --role, --client and --except exclude each other.")
    message: dict[str, Any] = {"topic": topic, "data": _data(data, text)}
    message |= {**more, "priority": _number_or_word(priority), "to": to or None, "except": besides}
    yield remote.publish({name: value for name, value in message.items() if name == "data" or value is not None})
    print_text(f"Published on {topic}.")


def _data(given: str, text: bool) -> Any:
    raw = sys.stdin.buffer.read() if given == "-" else given.encode()
    try:
        return raw.decode().removesuffix("\n") if text else protocol.loads(raw)
    except UnicodeDecodeError:
        raise click.UsageError("DATA is not UTF-8.") from None
    except ValueError as error:
        raise click.UsageError(f"DATA is not JSON ({error}); with --text it may be anything.") from None


def _number_or_word(given: str | None) -> float | str | None:
    with suppress(ValueError):
        number = protocol.loads((given or "").encode())
        if isinstance(number, int | float) and not isinstance(number, bool):
            return number
    return given


@cli.command()
@speaking
def nodes(remote: Remote) -> Steps:
    """The living nodes, with their clients and topics."""
    found = remote.nodes()
    yield found
    print_table(
        ["node", "state", "clients", "topics", "version", "up", "address"],
        [
            [n["id"], _state(n), n["clients"], n["topics"], n["version"], age(n["started"], time.time()), n["address"]]
            for n in found["nodes"]
        ],
        keep=4,
        none="No node is there.",
    )


def _state(node: Mapping[str, Any]) -> Text:
    state = state_of(node)
    style = {"ready": "green", "draining": "yellow"}.get(state, "red")
    return Text(f"{state}, moving clients" if node.get("moving") else state, style)


@cli.command()
@click.argument("client_id", metavar="[ID]", required=False)
@click.option("--user", help="Only this user's.")
@click.option("--ip", help="Only those from this address.")
@click.option("--topic", help="Only those that are subscribed to this topic.")
@click.option("--node", help="Only those on this node, by its name or id.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
@click.option("--cursor", metavar="ID", help="Only those behind this one: `next` of an answer that was not all.")
@speaking
def clients(remote: Remote, client_id: str | None, limit: int, cursor: str | None, **filters: str | None) -> Steps:
    """Who is connected; with ID, all about one client."""
    if client_id is not None:
        if any(given is not None for given in (cursor, *filters.values())):
            raise click.UsageError("ID names one client: leave the filters and --cursor out.")
        client = remote.client(client_id)
        yield client
        print_fields({**client, "topics": ", ".join(client["topics"])})
        return
    found = remote.clients({**filters}, limit, cursor)
    yield found
    print_table(
        ["client", "user", "topics", "for", "ip", "role"],
        [
            [c["id"], c["user"] or "-", len(c["topics"]), age(c["connectedAt"], time.time()), c["ip"], c["role"] or "-"]
            for c in found["clients"]
        ],
        keep=3,
        none="No client is there.",
    )
    if found["next"] is not None:
        click.echo(f"The first {limit}; there are more, and --limit shows them.", err=True)


@cli.command()
@click.argument("topic", required=False)
@click.option("--contains", metavar="TEXT", help="Only topics with this text in their name.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
@click.option("--after", metavar="TOPIC", help="Only topics behind this name: `next` of an answer that was not all.")
@speaking
def topics(remote: Remote, topic: str | None, contains: str | None, limit: int, after: str | None) -> Steps:
    """Topics and their subscribers; with TOPIC, by node."""
    if topic is not None:
        if contains is not None or after is not None:
            raise click.UsageError("TOPIC names one topic: leave --contains and --after out.")
        one = remote.topic(topic)
        yield one
        print_table(["node", "clients"], list(one["nodes"].items()), none=f"No client is subscribed to {topic}.")
        return
    found = remote.topics(limit, after, contains)
    yield found
    rows = [[heard["topic"], heard["subscribers"], len(heard["nodes"])] for heard in found["topics"]]
    none = "No client is subscribed to any topic." if contains is None and after is None else "No topic matches."
    print_table(["topic", "clients", "nodes"], rows, none=none)
    if found.get("next") is not None:
        click.echo(f"The first {limit}; there are more, and --limit shows them.", err=True)


@cli.command()
@click.argument("name", metavar="[SERVICE]", required=False)
@click.option("--graph", is_flag=True, help="What depends on what, as a tree.")
@speaking
def services(remote: Remote, name: str | None, graph: bool) -> Steps:
    """How background services are; with SERVICE, its instances."""
    if name is not None:
        if graph:
            raise click.UsageError("The graph is of all services: give either SERVICE or --graph.")
        service = remote.service(name)
        yield service
        rows = [[i["instance"], _status(i["status"]), _note(i)] for i in service["instances"]]
        print_table(["instance", "status", ""], rows, none="It has no instances.")
        for title in ("dependencies", "dependants"):
            told = ", ".join(f"{other['service']} ({other['status'] or 'unknown'})" for other in service[title])
            print_text(f"{title}: {told or 'none'}")
        return
    found = remote.services()
    yield found
    known = {service["service"]: service for service in found["services"]}
    if graph:
        needs = {other: service["dependsOn"] for other, service in known.items()}
        tree = list(dependencies.lines(needs, lambda other: _branch(other, known.get(other))))
        print_text("\n".join(tree) or "No service is there.")
        return
    print_table(
        ["service", "status", "instances", "running", "last error"],
        [
            [s["service"], _status(s["status"]), len(s["instances"]), s["running"], s["lastError"] or "-"]
            for s in found["services"]
        ],
        keep=4,
        none="No service is there.",
    )


def _status(status: str) -> Text:
    styles = {"active": "green", "error": "red", "offline": "red", "stopped": "dim", "disabled": "dim"}
    return Text(status, styles.get(status, "yellow"))


def _note(instance: Mapping[str, Any]) -> str:
    """Why an instance is as it is."""
    if instance.get("waitsFor"):
        return f"waits for {instance['waitsFor']}"
    if instance.get("standby"):
        return "stands by"
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
@speaking
def disconnect(remote: Remote, client: str | None, user: str | None) -> Steps:
    """Close a client's socket, or all of a user.

    On whichever nodes they are; the code is 3503, which means: do not come back.
    """
    if client is not None and user is None:
        done = remote.disconnect_client(client)
    elif user is not None and client is None:
        done = remote.disconnect_user(user)
    else:
        raise click.UsageError("Give either --client or --user.")
    yield done
    print_text("\n".join(f"Disconnected {gone}." for gone in done["disconnected"]) or f"{user} has no clients.")


@cli.command()
@click.argument("client_id", metavar="ID")
@click.argument("topic")
@speaking
def unsubscribe(remote: Remote, client_id: str, topic: str) -> Steps:
    """Take TOPIC from the client ID, which is told."""
    yield remote.unsubscribe(client_id, topic)
    print_text(f"Unsubscribed {client_id} from {topic}.")


@cli.command()
@click.argument("node")
@speaking
def drain(remote: Remote, node: str) -> Steps:
    """Have NODE send its clients away, and end.

    NODE is a name or an id. Clients go a few at a time; whoever watches over the node starts it again.
    """
    done = remote.drain(node)
    yield done
    print_text("\n".join(f"{gone} drains." for gone in done["draining"]))


@cli.command()
@click.option(
    "--seconds",
    type=click.FloatRange(0, balance.MAX_SECONDS),
    default=balance.SECONDS,
    show_default=True,
    help="Spread the closes over this time.",
)
@speaking
def rebalance(remote: Remote, seconds: float) -> Steps:
    """Move clients from fuller nodes to emptier ones.

    That is for after scale-out. Only those above the mean move: they are told, closed (3011), and
    led to another node as they come back.
    """
    done = remote.rebalance(seconds)
    yield done
    for move in done["moves"]:
        print_text(f"{move['node']} sends {move['clients']} clients away.")
    if not done["moves"]:
        print_text("No node has more clients than the others, so none moves.")
    elif done["after"]:
        print_text(f"They begin in {done['after']:.0f} s: the load balancer fills the youngest node slowly at first.")


@cli.command()
@speaking
def check(remote: Remote) -> Steps:
    """Say whether all is well, and fail unless it is.

    Asked are the settings here, the API, Redis and every node.
    """
    made = checks(remote, os.environ)
    yield {"ok": all(one.ok for one in made), "checks": [asdict(one) for one in made]}
    states = {True: Text("ok", "green"), False: Text("failed", "red"), None: Text("not asked", "yellow")}
    rows = [[one.check, states[one.ok], "\n-> ".join(filter(None, (one.found, one.todo)))] for one in made]
    print_table(["check", "state", "found"], rows)

"""python -m stack up [NODES] | restart | down | status | logs"""

import argparse
import os
import sys
from collections import deque
from types import ModuleType

from stack import balancer, compose
from stack.place import MAX_NODES, Place, StackError


def main() -> int:
    parser = argparse.ArgumentParser(prog="stack", description="Runs the cluster on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start or scale the stack").add_argument(
        "nodes", help="number of nodes, or max for one per core"
    )
    commands.add_parser("restart", help="restart the nodes one after the other")
    commands.add_parser("down", help="stop everything")
    commands.add_parser("status", help="nodes, health, addresses")
    commands.add_parser("logs", help="follow all logs")
    arguments = parser.parse_args()
    try:
        place = Place.from_env(os.environ)
        engine = _engine(place)
        match arguments.command:
            case "up":
                count = _count(arguments.nodes)
                engine.up(place, count)
                _print_welcome(place, count)
            case "restart":
                print(f"All {engine.restart(place)} nodes have restarted, and HAProxy reports them up.")
            case "down":
                engine.down(place)
                print("The stack is down.")
            case "status":
                healthy = _print_status(place, engine)
                sys.stdout.flush()
                return 0 if healthy else 1
            case "logs":
                engine.logs(place)
    except StackError as error:
        print(error, file=sys.stderr)
        if error.log and error.log.exists():
            print(f"\nThe end of {place.relative(error.log)}:", file=sys.stderr)
            with error.log.open(errors="replace") as lines:
                print(*deque(lines, maxlen=20), sep="", end="", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `make status | head` closed the pipe; the interpreter's last flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _engine(place: Place) -> ModuleType:
    """Compose if it answers, unless a local stack already runs; STACK=local or compose overrides."""
    choice = os.environ.get("STACK")
    if choice not in (None, "local", "compose"):
        raise StackError(f"STACK must be local or compose, not {choice!r}.")
    if choice == "compose":
        missing = compose.lacks()
        if missing is not None:
            raise StackError(f"STACK=compose needs Docker with Compose, and {missing}: start it, or use STACK=local.")
        return compose
    from stack import local  # imported here, because a Docker host may not have supervisor

    return local if choice == "local" or local.running(place) or compose.lacks() is not None else compose


def _count(text: str) -> int:
    if text == "max":
        return min(len(os.sched_getaffinity(0)), MAX_NODES)
    if not text.isdecimal() or not 1 <= int(text) <= MAX_NODES:
        raise StackError(f"NODES must be a number from 1 to {MAX_NODES}, or max, not {text!r}.")
    return int(text)


def _addresses(place: Place) -> str:
    public, internal = f"localhost:{place.lb_port}", f"127.0.0.1:{place.admin_port}"
    return (
        f"  page     http://{public}/\n"
        f"  socket   ws://{public}/ws\n"
        f"  console  http://{internal}/console\n"
        f"  API      http://{internal}/api/\n"
        f"  stats    http://{internal}/stats\n"
        f"  metrics  http://{internal}/metrics (HAProxy; each node has its own at /metrics)"
    )


def _print_welcome(place: Place, count: int) -> None:
    key = place.relative(place.key_file)
    print(f"{count} node{'s are' if count > 1 else ' is'} ready behind HAProxy.\n\n{_addresses(place)}\n")
    if os.environ.get("GATEWAY_OPEN", "1") == "1":
        print("This is an open demo (GATEWAY_OPEN=1): every client may do everything, so it listens on 127.0.0.1 only.")
    print(f"The API key is in {key}. To publish:\n")
    print(f'  curl http://127.0.0.1:{place.admin_port}/api/publish -H "Authorization: Bearer $(cat {key})" \\')
    print("""    -H 'Content-Type: application/json' -d '{"topic": "news", "data": {"text": "hello"}}'""")


def _print_status(place: Place, engine: ModuleType) -> bool:
    servers = balancer.servers(place)
    if not servers:
        print("The stack is down: HAProxy does not answer.", file=sys.stderr)
        return False
    print("Behind HAProxy:")
    for server in servers:
        print(f"  {server.name:<8} {server.status:<9} {server.address}")
    print("\nProcesses:")
    engine.status(place)
    print(f"\n{_addresses(place)}")
    return all(server.status == "UP" for server in servers)


if __name__ == "__main__":
    sys.exit(main())

"""The stack as containers: compose.yaml, for machines with a Docker engine."""

import os
import subprocess

from stack import balancer
from stack.place import ROOT, Place, StackError

# Six servers instead of one; each of them names the others.
CLUSTER = {"REDIS_SINGLE": "0", "GATEWAY_REDIS_URL": "redis+cluster://redis-1,redis-2,redis-3"}


def lacks() -> str | None:
    """What is missing to run containers, as part of a sentence; None if nothing is missing."""
    for command, missing in (
        (["docker", "--version"], "there is no docker command"),
        (["docker", "compose", "version"], "docker has no compose command"),
        (["docker", "info"], "no Docker engine answers"),
    ):
        try:
            subprocess.run(command, capture_output=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return missing
    return None


def up(place: Place, count: int) -> None:
    """Starts or scales to `count` nodes and waits until HAProxy reports all of them up."""
    profile = ["--profile", "cluster"] if place.redis == "cluster" else []
    try:
        _compose(place, *profile, "up", "--detach", "--build", "--wait", "--wait-timeout", "120", nodes=count)
        balancer.wait_for_all(place, count, seconds=60)
    except StackError:
        _compose(place, "logs", "--tail", "20", nodes=count)
        raise


def restart(place: Place) -> int:
    """Restarts the nodes one after the other, each when HAProxy reports all of them up. Returns their number."""
    nodes = _ask(place, "ps", "--quiet", "gateway").split()
    if not nodes:
        raise StackError("The stack is down, so there is nothing to restart: make up starts it.")
    for at, container in enumerate(nodes, 1):
        print(f"Restarting node {at} of {len(nodes)} ({container[:12]}) ...", flush=True)
        # Compose would restart all replicas together. The time is compose.yaml's stop_grace_period.
        done = subprocess.run(["docker", "restart", "--time", "60", container], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise StackError(f"docker restart {container[:12]} failed (exit {done.returncode}).")
        balancer.wait_for_all(place, len(nodes), seconds=60)
    return len(nodes)


def down(place: Place) -> None:
    # Stop the nodes first: they notify their clients through HAProxy, which must still run.
    _compose(place, "stop", "gateway")
    _compose(place, "--profile", "*", "down")


def status(place: Place) -> None:
    _compose(place, "ps")


def logs(place: Place) -> None:
    _compose(place, "logs", "--follow", "--tail", "50")


def _compose(place: Place, *command: str, nodes: int = 0) -> None:
    done = subprocess.run(["docker", "compose", *command], cwd=ROOT, env=_environment(place, nodes), check=False)
    if done.returncode:
        raise StackError(f"docker compose {' '.join(command)} failed (exit {done.returncode}).")


def _ask(place: Place, *command: str) -> str:
    """The output of Compose."""
    done = subprocess.run(
        ["docker", "compose", *command], cwd=ROOT, env=_environment(place), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StackError(f"docker compose {command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _environment(place: Place, nodes: int = 0) -> dict[str, str]:
    return {
        **os.environ,
        "GATEWAY_API_KEY": place.api_key(),
        "GATEWAY_OPEN": os.environ.get("GATEWAY_OPEN", "1"),
        "LB_PORT": str(place.lb_port),
        "LB_ADMIN_PORT": str(place.admin_port),
        **({"NODES": str(nodes)} if nodes else {}),
        **(CLUSTER if place.redis == "cluster" else {}),
    }

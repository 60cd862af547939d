"""The stack as containers: compose.yaml, where a Docker engine answers."""

import os
import subprocess

from stack import balancer
from stack.place import ROOT, Place, StackError


def answers() -> bool:
    """Whether there is an engine to talk to, and Compose to do it with."""
    try:
        for command in (["docker", "compose", "version"], ["docker", "info"]):
            subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def up(place: Place, count: int) -> None:
    """Starts or scales to `count` nodes and waits until HAProxy sees them all."""
    try:
        _compose(place, "up", "--detach", "--build", "--wait", "--wait-timeout", "120", nodes=count)
        balancer.wait_for_all(place, count, seconds=60)
    except StackError:
        _compose(place, "logs", "--tail", "20", nodes=count)
        raise


def down(place: Place) -> None:
    # The nodes first: they say goodbye to their clients, through an HAProxy that is still there.
    _compose(place, "stop", "gateway")
    _compose(place, "--profile", "*", "down")


def status(place: Place) -> None:
    _compose(place, "ps")


def logs(place: Place) -> None:
    _compose(place, "logs", "--follow", "--tail", "50")


def _compose(place: Place, *command: str, nodes: int = 0) -> None:
    env = {
        **os.environ,
        "GATEWAY_API_KEY": place.api_key(),
        "GATEWAY_OPEN": os.environ.get("GATEWAY_OPEN", "1"),
        "LB_PORT": str(place.lb_port),
        "LB_ADMIN_PORT": str(place.admin_port),
        **({"NODES": str(nodes)} if nodes else {}),
    }
    done = subprocess.run(["docker", "compose", *command], cwd=ROOT, env=env, check=False)
    if done.returncode:
        raise StackError(f"docker compose {command[0]} failed (exit {done.returncode}).")

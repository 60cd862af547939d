"""The two generated files of the local stack, as text: supervisord's configuration and HAProxy's environment."""

import os
import resource
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.dev import redis_program
from stack.need import tool
from stack.place import MAX_NODES, ROOT, Place, StackError

STOP_SECONDS = 60  # longer than a node's drain; then supervisord kills the process
OPEN_FILES = 20_000  # more than two for each of HAProxy's 8,000 connections
HAPROXY_CFG = ROOT / "haproxy" / "haproxy.cfg"
REDIS_CONF = ROOT / "stack" / "redis.conf"

# All clients have the address 127.0.0.1, so one source may be hundreds of clients. Defaults: haproxy/README.md.
LIMITS = {"RL_CUR": "5000", "RL_CONN": "20000", "RL_REQ": "20000"}


def node_port(place: Place, node: int) -> int:
    return place.node_port + node - 1


def log_file(place: Place, program: str) -> Path:
    return place.run / "log" / f"{program}.log"


def haproxy_command(environment: Path, *options: str) -> list[str]:
    return [tool("haproxy") or "haproxy", *options, "-f", str(environment), "-f", str(HAPROXY_CFG)]


def supervisord(place: Place, nodes: int) -> str:
    """Redis, HAProxy and each node are separate programs, so that each can change independently."""
    redis_socket = place.run / "redis.sock"
    # A Unix socket: the default port may be in use, and a web page could write to a Redis without password on a port.
    redis = [
        *(tool("redis-server") or redis_program() or "redis-server", str(REDIS_CONF), "--port", "0"),
        *("--unixsocket", str(redis_socket), "--unixsocketperm", "700"),
        *("--dir", str(place.run / "redis"), "--appendfsync", os.environ.get("REDIS_FSYNC") or "everysec"),
        *("--maxmemory", os.environ.get("REDIS_MAXMEMORY") or "1gb"),
    ]
    gateway = {
        "GATEWAY_OPEN": "1",
        **_from_shell("GATEWAY_"),
        "GATEWAY_API_KEY": place.api_key(),
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_REDIS_URL": f"unix://{redis_socket}",
    }
    haproxy = haproxy_command(place.run / "haproxy-env.cfg", "-W", "-db")
    return "\n".join(
        [
            "[supervisord]",
            f"logfile={_escaped(log_file(place, 'supervisord'))}",
            f"pidfile={_escaped(place.run / 'supervisord.pid')}",
            f"minfds={_open_files()}",  # the shell's soft limit of 1,024 would limit a node's clients
            "[unix_http_server]",
            f"file={_escaped(place.run / 'supervisor.sock')}",
            "chmod=0700",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
            *_program(place, "redis", redis),
            # Started when the nodes are ready: it then treats them as up, and no slow start distorts the load.
            *_program(place, "haproxy", haproxy, "autostart=false"),
        ]
        + [
            line
            for node in range(1, nodes + 1)
            for line in _program(
                place,
                f"gw{node}",
                [sys.executable, "-m", "gateway", "serve"],
                environment={
                    **gateway,
                    "GATEWAY_NODE": f"gw{node}",
                    "GATEWAY_PORT": str(node_port(place, node)),
                },
            )
        ]
    )


def _program(
    place: Place,
    name: str,
    command: Iterable[str],
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    variables = ",".join(f"{key}={_quoted(value)}" for key, value in sorted((environment or {}).items()))
    return [
        f"[program:{name}]",
        f"command={_escaped(shlex.join(command))}",
        f"directory={_escaped(ROOT)}",
        f"environment={_escaped(variables)}",
        "autorestart=true",
        f"stopwaitsecs={STOP_SECONDS}",
        "redirect_stderr=true",
        f"stdout_logfile={_escaped(log_file(place, name))}",
        "stdout_logfile_maxbytes=10MB",
        "stdout_logfile_backups=1",
        *options,
    ]


def haproxy_environment(place: Place, nodes: int) -> str:
    """The variables of haproxy.cfg as a separate file, which HAProxy reads first.

    The environment of a running process cannot change, and HAProxy's must change with the number of nodes.
    """
    variables = {
        **LIMITS,
        "LB_MAXCONN": str(min(8000, (_open_files() - 200) // 2)),
        **_from_shell("LB_", "RL_"),
        **{f"GW{node}": f"127.0.0.1:{node_port(place, node)}" for node in range(1, nodes + 1)},
        "LB_BIND": "127.0.0.1",
        "LB_PORT": str(place.lb_port),
        "LB_ADMIN": f"127.0.0.1:{place.admin_port}",
        "LB_RUN": str(place.run),
    }
    gone = [f"GW{node}" for node in range(nodes + 1, MAX_NODES + 1)]  # a reload keeps variables unless they are unset
    lines = [f"setenv {name} {_quoted(value)}" for name, value in sorted(variables.items())]
    return "\n  ".join(["global", *lines, *(f"unsetenv {name}" for name in gone)]) + "\n"


def _from_shell(*prefixes: str) -> dict[str, str]:
    """Settings of the current shell, passed explicitly: supervisord would keep those of the shell that started it."""
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def _open_files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)


def _quoted(value: str) -> str:
    """A quoted word for supervisord and HAProxy; both accept single quotes, without an escape."""
    if "'" in value or "\n" in value:
        raise StackError("A setting contains a quote or a line break, which the local stack cannot pass on: remove it.")
    return f"'{value}'"


def _escaped(text: object) -> str:
    """supervisord expands % in every value."""
    return str(text).replace("%", "%%")

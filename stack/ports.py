"""Checks whether ports are free, and names the process that uses one."""

import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from stack.place import StackError


def refuse_taken(wanted: Iterable[tuple[str, int]]) -> None:
    """Raises StackError for the first port in use. `wanted`: (variable that sets it, port)."""
    for variable, port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # lingering closed sockets do not count
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise StackError(
                    f"Port {port} is in use{_by_whom(port)}: stop that process, or choose another with {variable}=..."
                ) from None


def _by_whom(port: int) -> str:
    """The process that listens there, if this user may see it."""
    if sys.platform != "linux":
        return ""
    listening = "0A"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state != listening or int(local.split(":")[1], 16) != port:
            continue
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if any(fd.readlink() == Path(f"socket:[{inode}]") for fd in (process / "fd").iterdir()):
                    return f" by {(process / 'comm').read_text().strip()} (pid {process.name})"
            except OSError:  # no permission, or the process has exited
                continue
    return ""

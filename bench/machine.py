"""The machine: its cores, the resources of processes, installed versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

# The servers have one core, the load and Redis share the other. HAProxy has a thread on each core, its default.
SERVER_CORE, LOAD_CORE = max(os.sched_getaffinity(0)), min(os.sched_getaffinity(0))


@contextmanager
def on(*cores: int) -> Iterator[None]:
    """Processes that are started in the `with` run only on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, core: int) -> None:
    """Moves a running process with all its threads to one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes, including all threads."""
    ticks = 0
    for pid in pids:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> tuple[int, ...]:
    """The process and its children."""
    return pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def memory_kb(pids: Iterable[int]) -> float:
    """Resident memory of the processes."""
    found = (re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in pids)
    return sum(int(one[1]) for one in found if one)


def describe() -> dict[str, str]:
    """Properties of this machine for the report."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": f"{cpu[1] if cpu else platform.processor()}, {os.cpu_count()} cores",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        **{name: version(name) for name in ("starlette", "uvicorn", "uvloop", "redis")},
        "Redis": _version("redis-server", "--version", pattern=r"v=(\S+)"),
        "HAProxy": _version("haproxy", "-v", pattern=r"version (\S+)"),
        "Node.js": _version("node", "--version", pattern=r"v(\S+)"),
    }


def _version(*command: str, pattern: str) -> str:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin"])
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=False, env={"PATH": path}
        ).stdout
    except OSError:
        return "not installed"
    found = re.search(pattern, output)
    return found[1] if found else "unknown"

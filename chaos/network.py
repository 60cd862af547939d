"""Hosts on one machine: network namespaces with an address each, joined by a switch that can drop packets.

The switch is a bridge in its own namespace, so nothing of it is visible outside. It drops packets silently, without a
reset, as when a cable is unplugged. The names contain the process that created them; the next run removes what a
killed run left.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.kit.process import Closing, Host, program

PREFIX: Final = "gwchaos"
NETWORK: Final = "10.91"  # /16; it exists only in these namespaces
COMMAND_SECONDS: Final = 20.0
CLONE_NEWNET: Final = 0x40000000
NAMESPACES: Final = Path("/run/netns")


class NetworkError(Exception):
    """The network cannot be created here; the message states the reason."""


class Network(Closing):
    """Hosts with these names; each can reach all others.

    Raises:
        NetworkError: This process may not create namespaces.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if os.geteuid() != 0:
            raise NetworkError("network namespaces need root")
        _sweep()
        self._run = f"{run_of(os.getpid())}-"
        self._addresses = {name: f"{NETWORK}.0.{at}" for at, name in enumerate(names, 1)}
        self._dropped: list[str] = []  # rules of the switch
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        switch = f"{self._run}switch"
        _ip("netns", "add", switch)
        self._switch("link add name bridge type bridge", "link set dev bridge up")
        for name, address in self._addresses.items():
            space = self._run + name
            _ip("netns", "add", space)
            self._switch(
                f"link add name {name} type veth peer name eth0 netns {space}", f"link set dev {name} master bridge up"
            )
            _batch(space, f"addr add {address}/16 dev eth0", "link set dev lo up", "link set dev eth0 up")
        self._apply()  # a kernel that cannot drop packets must fail now, not during the run

    def host(self, name: str) -> Host:
        """The host on which to start a process."""
        return Host(self._addresses[name], (program("ip"), "netns", "exec", self._run + name))

    def crowd(self, name: str) -> str:
        """Adds many addresses (`.16.0` to `.31.255`) to a host; returns their first two numbers."""
        _batch(self._run + name, f"route add local {NETWORK}.16.0/20 dev lo")
        return NETWORK

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Moves this thread, and threads that it starts, to that host."""
        with open("/proc/thread-self/ns/net") as home:
            with (NAMESPACES / (self._run + name)).open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    # ---- faults

    def cut(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Drops every packet between `some` and `others`."""
        one, other = _set(some), _set(others)
        self._dropped += [f"iifname {one} oifname {other} drop", f"iifname {other} oifname {one} drop"]
        self._apply()

    def lose(self, name: str, percent: int) -> None:
        """Drops `percent` of the packets to and from a host, at random."""
        chance = f"numgen random mod 100 < {percent} drop"
        self._dropped += [f"iifname {_set([name])} {chance}", f"oifname {_set([name])} {chance}"]
        self._apply()

    def heal(self) -> None:
        """Stops dropping packets."""
        self._dropped.clear()
        self._apply()

    def _apply(self) -> None:
        """Replaces all rules in one step."""
        chain = ["type filter hook forward priority 0; policy accept;", *self._dropped]
        rules = "\n".join(["flush ruleset", "table bridge cuts {", "chain forward {", *chain, "}", "}", ""])
        _run([program("ip"), "netns", "exec", f"{self._run}switch", program("nft"), "-f", "-"], rules)

    def _switch(self, *commands: str) -> None:
        _batch(f"{self._run}switch", *commands)

    def close(self) -> None:
        """Removes all namespaces, with the processes in them."""
        for space in _spaces(self._run):
            _remove(space)


def _set(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"


def _spaces(prefix: str) -> list[str]:
    return sorted(file.name for file in NAMESPACES.glob(f"{prefix}*"))


def run_of(pid: int) -> str:
    """Name prefix of a process's namespaces. It includes the start time, because process ids are reused."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = "ended"
    return f"{PREFIX}-{pid}-{began}"


def _sweep() -> None:
    """Removes the namespaces of runs that no longer exist."""
    for space in _spaces(PREFIX):
        match = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-\w+", space)
        if match is not None and not space.startswith(f"{run_of(int(match[1]))}-"):
            _remove(space)


def _remove(space: str) -> None:
    """Kills the namespace's processes and deletes its name; the kernel removes it with the last process."""
    with suppress(NetworkError):
        for pid in map(int, _ip("netns", "pids", space).split()):
            if pid != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _ip("netns", "delete", space)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(namespace, CLONE_NEWNET):
        raise NetworkError(f"setns: {os.strerror(ctypes.get_errno())}")


def _ip(*words: str) -> str:
    return _run([program("ip"), *words])


def _batch(space: str, *commands: str) -> None:
    _run([program("ip"), "-n", space, "-batch", "-"], "\n".join((*commands, "")))


def _run(command: Sequence[str], given: str = "") -> str:
    try:
        done = subprocess.run(  # noqa: S603  fixed arguments
            command, input=given, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(f"{' '.join(command)} took longer than {COMMAND_SECONDS:g} s") from None
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout

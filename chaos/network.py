"""Hosts on one machine: network namespaces with an address each, joined by a switch that drops what it is told.

The switch is a bridge in a namespace of its own, so nothing of it shows outside. What it drops is gone without a word:
nobody gets a reset, as when a cable is pulled. Names say which process made them; what a dead run left behind is
removed by the next.
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

from tests.cluster import Closing, Host, program

PREFIX: Final = "gwchaos"
NETWORK: Final = "10.91"  # /16; it exists nowhere but in these namespaces
COMMAND_SECONDS: Final = 20.0
CLONE_NEWNET: Final = 0x40000000
NAMESPACES: Final = Path("/run/netns")


class NetworkError(Exception):
    """It cannot be made here; the message says why, in one sentence."""


class Network(Closing):
    """Hosts by these names, each of which reaches all others.

    Raises:
        NetworkError: This machine does not let us.
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
        self._tell()  # a kernel that cannot drop must say so now, and not in the midst of it

    def host(self, name: str) -> Host:
        """Where a process runs that is started there."""
        return Host(self._addresses[name], (program("ip"), "netns", "exec", self._run + name))

    def crowd(self, name: str) -> str:
        """Have a host answer for many addresses more; the first two numbers of what is below (`.16.0` to `.31.255`)."""
        _batch(self._run + name, f"route add local {NETWORK}.16.0/20 dev lo")
        return NETWORK

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """We are on that host ourselves: this thread, and those that it starts meanwhile."""
        with open("/proc/thread-self/ns/net") as home:
            with (NAMESPACES / (self._run + name)).open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    # ---- what the switch does

    def cut(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Drop every packet between any of these and any of those."""
        one, other = _set(some), _set(others)
        self._dropped += [f"iifname {one} oifname {other} drop", f"iifname {other} oifname {one} drop"]
        self._tell()

    def lose(self, name: str, percent: int) -> None:
        """Drop so many of a hundred packets to and from a host, by chance."""
        chance = f"numgen random mod 100 < {percent} drop"
        self._dropped += [f"iifname {_set([name])} {chance}", f"oifname {_set([name])} {chance}"]
        self._tell()

    def heal(self) -> None:
        """Drop nothing any more."""
        self._dropped.clear()
        self._tell()

    def _tell(self) -> None:
        """All rules at once, in the place of those before."""
        chain = ["type filter hook forward priority 0; policy accept;", *self._dropped]
        rules = "\n".join(["flush ruleset", "table bridge cuts {", "chain forward {", *chain, "}", "}", ""])
        _run([program("ip"), "netns", "exec", f"{self._run}switch", program("nft"), "-f", "-"], rules)

    def _switch(self, *commands: str) -> None:
        _batch(f"{self._run}switch", *commands)

    def close(self) -> None:
        """Remove all of it, with whatever still runs there."""
        for space in _spaces(self._run):
            _remove(space)


def _set(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"


def _spaces(prefix: str) -> list[str]:
    return sorted(file.name for file in NAMESPACES.glob(f"{prefix}*"))


def run_of(pid: int) -> str:
    """How the namespaces begin that a process makes. With when it began: numbers of processes come again."""
    try:
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = "ended"
    return f"{PREFIX}-{pid}-{began}"


def _sweep() -> None:
    """Remove what runs have left behind that are no more."""
    for space in _spaces(PREFIX):
        match = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-\w+", space)
        if match is not None and not space.startswith(f"{run_of(int(match[1]))}-"):
            _remove(space)


def _remove(space: str) -> None:
    """End what was started in it, then take its name; with the last process it is gone."""
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
        done = subprocess.run(  # noqa: S603  words of ours
            command, input=given, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(f"{' '.join(command)} took longer than {COMMAND_SECONDS:g} s") from None
    if done.returncode:
        raise NetworkError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout

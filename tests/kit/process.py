"""A process that a test starts: its output goes to a file; it is frozen, thawed and ended by its pid."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from stack.need import tool
from tests.kit.waiting import until

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 30.0
SHOWN_LINES = 60


class Process:
    """One command; the test must call `close` at the end, also after a failure."""

    running: ClassVar[list[Process]] = []  # whose log a failing test shows

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._command = command
        self._env = env
        self._log = log
        log.touch()
        self._page = 0  # where in the log `log` begins
        self._process: subprocess.Popen[bytes] | None = None
        self.running.append(self)

    def spawn(self) -> None:
        """Run the command; what it prints is added to the log."""
        assert not self.alive, f"{self.name} runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env
            )

    @property
    def alive(self) -> bool:
        """Whether it runs, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop it without its noticing."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, without a chance to clean up."""
        if self.alive:
            self.signal(signal.SIGKILL)
        self.exit_code()

    def exit_code(self, seconds: float = 30.0) -> int:
        """Its exit code, waited for."""
        assert self._process is not None
        return self._process.wait(seconds)

    def children(self) -> list[int]:
        """Process ids of what it has started."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def close(self) -> None:
        """Leave nothing of it behind."""
        if self._process is not None:
            self.kill()
        self.running.remove(self)

    def until_listens(self, port: int, address: str = "127.0.0.1") -> None:
        """Wait until the process accepts connections on a port."""

        def listens() -> bool:
            assert self.alive, f"{self.name} exited:\n{self.last_words()}"
            with socket.socket() as probe:
                return probe.connect_ex((address, port)) == 0

        until(listens, START_SECONDS, f"{self.name} accepts connections")

    def log(self) -> list[str]:
        """The whole lines it has printed since the last `turn_page`."""
        with self._log.open("rb") as log:
            log.seek(self._page)
            text = log.read().decode(errors="replace")
        return text.split("\n")[:-1]  # what follows the last newline is being written

    def turn_page(self) -> None:
        """Leave what it has printed so far out of `log`."""
        self._page = self._log.stat().st_size

    def last_words(self) -> str:
        """The end of its log, for a person who looks at a failure."""
        return "\n".join(self.log()[-SHOWN_LINES:])


RESERVED = 200  # ports that one process keeps: more than one test uses
BUS = 10_000  # above the port of a server of a Redis Cluster is the one where the servers speak together
CLUSTER_PORTS = range(10_000, 12_000)
BUS_PORTS = range(CLUSTER_PORTS.start + BUS, CLUSTER_PORTS.stop + BUS)


_reserved: deque[socket.socket] = deque(maxlen=RESERVED)  # by this process; the oldest is given back first


def free_port() -> int:
    """A port of 127.0.0.1 without a listener, reserved for the caller: no other test process gets it.

    Below the range that the kernel gives to outgoing connections: a port from there could be taken by one of our own
    thousands before the server binds it, or while it is stopped; a client that retries could even meet itself.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(CLUSTER_PORTS.stop, lowest)
        if port not in BUS_PORTS and _reserve(port):
            return port


def free_cluster_port() -> int:
    """A port for a server of a Redis Cluster, whose bus port is free too. `free_port` gives neither of them."""
    while True:
        port = random.SystemRandom().choice(CLUSTER_PORTS)
        if _is_free(port + BUS) and _reserve(port):
            return port


def _reserve(port: int) -> bool:
    """Keep a port by a UDP socket of the same number, which a TCP server beside it does not notice."""
    keeper = socket.socket(type=socket.SOCK_DGRAM)
    try:
        keeper.bind(("127.0.0.1", port))
    except OSError:
        keeper.close()
        return False
    if not _is_free(port):
        keeper.close()
        return False
    if len(_reserved) == RESERVED:
        _reserved[0].close()
    _reserved.append(keeper)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def clean_environment() -> dict[str, str]:
    """Our environment without what would configure a gateway or its load balancer.

    Python may write bytecode files even if the environment forbids it: the tests start more than a thousand nodes, and
    compiling the gateway takes a third of the time of a start.
    """
    ours = ("GATEWAY_", "LB", "RL_", "GW", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def program(name: str) -> str:
    """The path of an installed program.

    Raises:
        AssertionError: It is not installed.
    """
    found = tool(name)
    assert found, f"{name} is not installed, and the tests need it"
    return found


@dataclass(frozen=True, slots=True)
class Host:
    """Where a process runs: this machine, or a part of it with a network of its own."""

    address: str = "127.0.0.1"
    enter: tuple[str, ...] = ()  # what stands before a command that is to run there


HERE = Host()


class Closing:
    """Ended at the end of a `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Program(Closing):
    """A server that runs as one process, and what tests do to it."""

    process: Process

    def kill(self) -> None:
        """End it at once, without a chance to write what it holds."""
        self.process.kill()

    def freeze(self) -> None:
        """Let it keep its sockets and answer nothing."""
        self.process.freeze()

    def thaw(self) -> None:
        """Let it answer again."""
        self.process.thaw()

    def close(self) -> None:
        """End it and leave nothing."""
        self.process.close()

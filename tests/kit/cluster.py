"""Nodes on one Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from tests.kit.node import Node
from tests.kit.process import HERE, Closing, Host
from tests.kit.redis import Redis, Store
from tests.kit.waiting import until


class Cluster(Closing):
    """Nodes n1, n2, … on one Redis."""

    def __init__(self, n: int, folder: Path, redis: Store, hosts: Sequence[Host] = (), /, **settings: object) -> None:
        self._store = redis
        self.nodes: list[Node] = []
        self._hosts = hosts
        self._folder = folder
        self._settings = settings
        try:
            self.grow(n)
        except BaseException:
            self.close()
            raise

    @property
    def redis(self) -> Redis:
        """The server they share, if it is one."""
        assert isinstance(self._store, Redis)
        return self._store

    def grow(self, n: int) -> None:
        """Start `n` more and wait until they are ready."""
        for _ in range(n):
            at = len(self.nodes)
            host = self._hosts[at] if self._hosts else HERE
            self.nodes.append(Node(f"n{at + 1}", self._folder, self._store, host, **self._settings))
        for node in self.nodes[-n:]:
            try:
                until(node.ready, 60, f"{node.name} is ready")
            except AssertionError as error:
                error.add_note(node.process.last_words())  # it is closed before the failure is reported
                raise

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @overload
    def __getitem__(self, at: int) -> Node: ...

    @overload
    def __getitem__(self, at: slice) -> list[Node]: ...

    def __getitem__(self, at: int | slice) -> Node | list[Node]:
        return self.nodes[at]

    def __len__(self) -> int:
        return len(self.nodes)

    def complaints(self) -> list[str]:
        """Lines in the nodes' logs that report internal errors."""
        return [f"{node.name}: {line}" for node in self.nodes for line in node.complaints()]

    def close(self) -> None:
        """End all and leave nothing."""
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)

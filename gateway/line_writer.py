"""Writes log lines to a file descriptor in a separate thread, so that logging never blocks and never fails.

A pipe without a reader fills up quickly, and a closed one rejects every write. Neither affects the caller: lines wait
in a queue with a limit, and a line that does not fit or cannot be written is dropped and counted.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from typing import Final

MAX_BYTES: Final = 4 << 20  # size of the queue, including the lines being written
WRITE_BYTES: Final = 64 << 10  # size of one write: the capacity of a pipe
RETRY_SECONDS: Final = 0.2  # while a descriptor in non-blocking mode is full


class LineWriter:
    """A queue of lines and the thread that writes them; the thread starts with the first line."""

    def __init__(self, fd: int, max_bytes: int = MAX_BYTES) -> None:
        self.dropped = 0  # lines
        self._fd = fd
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._closing = False
        # Reentrant: a signal handler or a finalizer may log in the middle of `write`.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Queue `line`, which ends with a newline; drop it if the queue is full or closed."""
        with self._changed:
            if self._closing or self._bytes + len(line) > self._max_bytes:
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"log writer {self._fd}", daemon=True)
                self._thread.start()
            self._changed.notify()

    def drop(self) -> None:
        """Count a line that could not be encoded."""
        with self._changed:
            self.dropped += 1

    def close(self, seconds: float) -> None:
        """Close the queue and write its lines, for at most `seconds`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    if self._closing:
                        return
                    self._changed.wait()
                batch = [self._lines.popleft()]
                size = len(batch[0])
                while self._lines and size + len(self._lines[0]) <= WRITE_BYTES:
                    batch.append(self._lines.popleft())
                    size += len(batch[-1])
            written = self._put(b"".join(batch))
            with self._changed:
                self._bytes -= size
                if not written:
                    self.dropped += len(batch)

    def _put(self, text: bytes) -> bool:
        """Write `text`; False if that fails: the reader is gone, the disk is full, or the descriptor is closed."""
        rest = memoryview(text)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                select.select([], [self._fd], [], RETRY_SECONDS)
            except (OSError, ValueError):
                return False
        return True

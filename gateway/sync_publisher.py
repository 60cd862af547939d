"""Publishes from programs without an event loop: Django, Flask, Celery, scripts.

    publisher = SyncPublisher("redis://127.0.0.1:6379/0")
    publisher.publish("contest", {"leader": "ann"})

It runs a `Publisher` on an event loop of its own in a daemon thread. Messages that several threads publish at the same
time share a round trip.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from gateway.broker.failures import Unavailable
from gateway.publisher import RETRY_SECONDS, TIMEOUT_SECONDS, Publisher, check_url, read_broadcast, read_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from types import TracebackType

    from gateway.core.position import Position
    from gateway.core.publication import Publication

T = TypeVar("T")

MARGIN_SECONDS: Final = 5.0  # beyond all deadlines of the publisher


class SyncPublisher:
    """A publisher on the Redis at `url`, for any number of threads. It connects at the first publish.

    It may be created before a fork: each process then connects for itself. `close` ends the thread and the
    connections; the next publish opens them again. Arguments and errors: as for `Publisher`.
    """

    def __init__(
        self, url: str, *, namespace: str = "gw:", timeout_seconds: float = TIMEOUT_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:  # fmt: skip
        check_url(url)
        self._url = url
        self._options = {"namespace": namespace, "timeout_seconds": timeout_seconds, "retry_seconds": retry_seconds}
        # A publish has two round trips (the rules, the message), each of which may wait in a queue as long.
        self._longest = retry_seconds + 4 * timeout_seconds + MARGIN_SECONDS
        self._lock = threading.Lock()
        self._thread: _PublisherThread | None = None
        self._inherited: list[_PublisherThread] = []
        forget_thread = weakref.WeakMethod(self._forget_thread)
        os.register_at_fork(after_in_child=lambda: _call(forget_thread))

    def publish(self, topic: str, data: Any, **more: Any) -> Position | None:
        """Publish `data`, any JSON; `more` holds the fields of the HTTP API: `action`, `to`, `idempotencyKey`, …

        Returns the position if the topic has history.

        Raises:
            ProtocolError, PublicationTooLarge, Unavailable: As `Publisher.publish_all`.
        """
        return self.publish_all([{"topic": topic, "data": data, **more}])[0]

    def publish_all(self, messages: Sequence[Mapping[str, Any]]) -> list[Position | None]:
        """Publish all messages or none, in one round trip. Errors: as `Publisher.publish_all`."""
        return self.publish_publications(read_messages(messages))

    def broadcast(self, topics: Sequence[str], data: Any, **more: Any) -> list[Position | None]:
        """Publish one message on all of `topics` or on none, in one round trip. As `Publisher.broadcast`."""
        return self.publish_publications(read_broadcast(topics, data, more))

    def delete_history(self, topic: str) -> bool:
        """Delete the messages of `topic`. As `Publisher.delete_history`."""
        return self._result(self._begin(lambda thread: thread.delete_history(topic)))

    def publish_publications(self, publications: Sequence[Publication]) -> list[Position | None]:
        """As `publish_all`, for messages that have been read."""
        return self._result(self.submit_publications(publications))

    def submit(self, messages: Sequence[Mapping[str, Any]]) -> Future[list[Position | None]]:
        """Begin to publish all messages or none, without waiting. The result of the future is that of `publish_all`.

        The data is copied, so later changes have no effect. Messages of several calls share a round trip.

        Raises:
            ProtocolError: A message is invalid; other errors are those of the future.
        """
        from gateway.core.publication import copied

        return self.submit_publications([copied(publication) for publication in read_messages(messages)])

    def submit_publications(self, publications: Sequence[Publication]) -> Future[list[Position | None]]:
        """As `submit`, for messages that have been read and copied."""
        return self._begin(lambda thread: thread.submit(publications))

    def _begin(self, call: Callable[[_PublisherThread], Future[T]]) -> Future[T]:
        with self._lock:  # `close` must not end the thread meanwhile
            if self._thread is None:
                self._thread = _PublisherThread(Publisher(self._url, **self._options))  # type: ignore[arg-type]
            return call(self._thread)

    def _result(self, pending: Future[T]) -> T:
        try:
            return pending.result(self._longest)
        except TimeoutError:
            raise Unavailable(f"the call has not ended within {self._longest:g} s") from None

    def close(self) -> None:
        """End the thread and close the connections. Publishes that have not ended raise `CancelledError`."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _forget_thread(self) -> None:
        """In a child process: the thread runs in the parent only, and another thread may have held the lock."""
        self._lock = threading.Lock()
        if self._thread is not None:
            # Keep the parent's loop and sockets: their finalizers would change the epoll set that both processes share.
            self._inherited.append(self._thread)
            self._thread = None


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    function = method()
    if function is not None:
        function()


class _PublisherThread:
    """A thread with an event loop on which `publisher` is open."""

    def __init__(self, publisher: Publisher) -> None:
        import asyncio
        from concurrent.futures import Future

        self._publisher = publisher
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._stop = asyncio.Event()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=[opened], name="gateway-publisher", daemon=True)
        self._thread.start()
        opened.result()

    def submit(self, publications: Sequence[Publication]) -> Future[list[Position | None]]:
        """Begin to publish, from any thread."""
        import asyncio

        return asyncio.run_coroutine_threadsafe(self._publisher.publish_publications(publications), self._loop)

    def delete_history(self, topic: str) -> Future[bool]:
        """Begin to delete the history of a topic, from any thread."""
        import asyncio

        return asyncio.run_coroutine_threadsafe(self._publisher.delete_history(topic), self._loop)

    def stop(self) -> None:
        """Close the publisher, and return when the thread has ended."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self, opened: Future[None]) -> None:
        with self._runner as runner:
            runner.run(self._serve(opened))

    async def _serve(self, opened: Future[None]) -> None:
        try:
            async with self._publisher:
                opened.set_result(None)
                await self._stop.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

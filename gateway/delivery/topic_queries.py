"""Queries of clients and administrators about one topic: its history and its presence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.broker.history import History
from gateway.core.events import Delivered
from gateway.core.events import History as HistoryPage
from gateway.core.presence_set import Member, PresenceSet
from gateway.delivery.presence import MAX_LISTED, PresenceTracker, is_listed, member_json


class TopicQueries:
    """Answers queries about topics. `own_members` gives this node's clients on a topic."""

    def __init__(self, history: History, presence: PresenceTracker, own_members: Callable[[str], list[Member]]) -> None:
        self._history = history
        self._presence = presence
        self._own_members = own_members

    async def read_history(
        self, topic: str, *, limit: int, since: int | None, reverse: bool, before: int | None = None
    ) -> HistoryPage:
        """Messages of a topic with history: the newest `limit`, or the first `limit` after the offset `since`.

        With `before`, the `limit` messages that precede this offset.

        They are in order, or newest first with `reverse`.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        first = None if since is None or reverse else since + 1
        if before is not None:
            first = max(1, before - limit)
        page = await self._history.read(topic, first, limit, compare=False)
        entries = [
            entry
            for entry in page.entries
            if (since is None or entry.offset > since) and (before is None or entry.offset < before)
        ]
        ordered = reversed(entries) if reverse else entries
        messages = [Delivered(entry.body, entry.position(page.epoch)) for entry in ordered]
        return HistoryPage(page.epoch, page.top, page.mark, messages)

    async def read_presence(self, topic: str, *, clients: bool = False) -> dict[str, Any]:
        """The number of people on a topic with presence, and a list of them unless it is too long.

        `clients`: count all clients, and list them instead, each with its user.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        presence_set = await self._presence_set(topic)
        about: dict[str, Any] = {"count": len(presence_set)}
        if clients:
            about["clientCount"] = len(presence_set.clients)
        if (len(presence_set.clients) if clients else len(presence_set)) > MAX_LISTED:
            return about
        members = presence_set.client_members() if clients else presence_set.members()
        if is_listed(members):
            about["clients" if clients else "members"] = [member_json(member) for member in members]
        return about

    async def count_presence(self, topic: str) -> tuple[int, int]:
        """The numbers of clients and of people on a topic with presence.

        Raises:
            Unavailable: Redis did not answer in time.
        """
        presence_set = await self._presence_set(topic)
        return len(presence_set.clients), len(presence_set)

    async def _presence_set(self, topic: str) -> PresenceSet:
        """The presence set of the topic, with this node's clients that are not written to Redis yet.

        So a client that asks right after its subscription finds itself. A set too long to list has a count only.
        """
        presence_set = await self._presence.members(topic)
        if len(presence_set.clients) > MAX_LISTED:
            return presence_set
        return presence_set.including(self._own_members(topic))

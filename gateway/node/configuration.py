"""What a node reads again at a reload: topic rules, API keys, JWT keys, the back end's secret."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from gateway.auth import api_keys, key_set
from gateway.auth.api_keys import ApiKeys
from gateway.auth.key_set import KeySet
from gateway.backend import Backend
from gateway.connections.open_connections import OpenConnections
from gateway.core import hub, rebalancing, topic_rules
from gateway.core.errors import CloseReason
from gateway.core.hub import Hub
from gateway.core.topic_rules import Need, Rule, RulesError, TopicRules
from gateway.delivery.sender import Sender
from gateway.delivery.slices import in_slices
from gateway.delivery.topic_copies import TopicCopies
from gateway.logging import logger
from gateway.node.drain import close_client
from gateway.settings import Settings
from gateway.transports.connection import Connection


@dataclass(frozen=True, slots=True)
class Configuration:
    """A complete configuration that was read and is valid."""

    rules: TopicRules
    api_keys: ApiKeys
    token_keys: KeySet
    backend_secret: str

    @property
    def digest(self) -> str:
        """Identifies the topic rules and the file of API keys: nodes that read the same files have the same digest."""
        return f"{self.rules.digest}.{self.api_keys.digest}"


def read(settings: Settings) -> Configuration:
    """Read the files that `settings` names.

    Raises:
        ValueError: A file cannot be read or is invalid. The message is one sentence.
    """
    default = Rule(pattern="*", subscribe=Need(settings.default_subscribe), publish=Need(settings.default_publish))
    return Configuration(
        load_rules(settings.topics, default), api_keys.load(settings), key_set.load(settings), settings.backend_secret
    )


def load_rules(file: str, default: Rule = topic_rules.ANY_OTHER) -> TopicRules:
    """Read the topic rules in `file`, or the default file of the package if it is empty; `default` applies elsewhere.

    Raises:
        RulesError: The file cannot be read or is invalid.
    """
    if not file:
        return topic_rules.parse(resources.files("gateway").joinpath("topics.toml").read_text(), "topics.toml", default)
    try:
        return topic_rules.parse(Path(file).read_text(), file, default)
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"GATEWAY_TOPICS: {file} cannot be read: {error}") from None


class LiveConfiguration:
    """The configuration that the parts of a node use. `current` holds the objects that they share.

    `rules_changed` is called after the topic rules have changed.
    """

    def __init__(
        self, current: Configuration, *, hub: Hub, topic_copies: TopicCopies, connections: OpenConnections,
        sender: Sender, backend: Backend | None, rules_changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._current = current
        self._hub = hub
        self._topic_copies = topic_copies
        self._connections = connections
        self._sender = sender
        self._backend = backend
        self._rules_changed = rules_changed

    async def replace(self, new: Configuration) -> None:
        """Use `new` from now on. Keys change at once.

        Clients reconnect if they use something that changed: those that are subscribed to a topic whose permission,
        history, snapshot or presence changed, and those that an API key admitted if a key is no longer valid.
        """
        added, removed = self._current.api_keys.replace(new.api_keys)
        self._current.token_keys.replace_given(new.token_keys)
        if self._backend is not None:
            self._backend.replace_secret(new.backend_secret)
        moved = self._reconnect(self._admitted_by_key()) if removed else 0
        rules_before = self._current.rules.digest
        if new.rules.digest != rules_before:
            moved += await self._replace_rules(new.rules)
        logger().info(
            "configuration reloaded", rules=new.rules.digest, rules_before=rules_before, keys_added=added,
            keys_removed=removed, clients_reconnect=moved,
        )  # fmt: skip

    async def _replace_rules(self, rules: TopicRules) -> int:
        """Replace the topic rules when no client is subscribed to a topic whose terms change, or waits to be."""
        known: set[str] = set()
        changed: set[str] = set()
        async for topics in in_slices(list(self._topics())):
            known.update(topics)
            changed.update(topic for topic in topics if self._differs(topic, rules))
        moved = 0
        async for topics in in_slices(list(changed)):
            moved += self._reconnect(self._subscribers(topics))
        # From here on in one turn of the event loop: a few clients may have come meanwhile.
        changed.update(topic for topic in self._topics() if topic not in known and self._differs(topic, rules))
        moved += self._reconnect(self._subscribers(changed))
        for topic in changed:
            self._topic_copies.close_topic(topic)
        self._current.rules.replace(rules)
        self._rules_changed()
        return moved

    def _differs(self, topic: str, rules: TopicRules) -> bool:
        return self._current.rules.of(topic).subscription_terms != rules.of(topic).subscription_terms

    def _topics(self) -> set[str]:
        """The topics that clients of this node are subscribed to, or wait to be subscribed to."""
        prefix = hub.joining_topic("")
        return {*self._hub.topics(), *(name.removeprefix(prefix) for name in self._hub if name.startswith(prefix))}

    def _subscribers(self, topics: Iterable[str]) -> list[Connection]:
        audiences = (audience(topic) for topic in topics for audience in (hub.topic_audience, hub.joining_topic))
        members = {member: None for audience in audiences for member in self._hub.members(audience)}
        return [member for member in members if isinstance(member, Connection)]

    def _admitted_by_key(self) -> list[Connection]:
        return [one for one in self._connections if one.session.identity.reads_all]

    def _reconnect(self, clients: Sequence[Connection]) -> int:
        """Notify and close `clients`, which connect again to any node. Returns how many were still open."""
        return sum(
            close_client(self._sender, one, CloseReason.MOVE, rebalancing.reconnect_ms(len(clients), 0, random.random))
            for one in clients
        )

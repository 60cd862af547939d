"""Every key and channel, with the reason for its shape.

Braces are Redis Cluster hash tags: what one Lua script touches shares a tag, so it shares a slot. A node id,
a topic and a service's name hold no braces, so a tag is never cut short.

On a cluster, channels that have a slot of their own are told by their braces too (`Link.publish_command`): they are
heard, and published on, at the server that has the slot, with SSUBSCRIBE and SPUBLISH; a topic's is that of its stream.
The others are few and for all: what is published on them goes to every server. On a single Redis a channel has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_GLOB: Final = re.compile(r"([*?\[\]\\])")
_ESCAPED: Final = r"\\\1"


@dataclass(frozen=True, slots=True)
class Keys:
    """Names under one namespace, which stands before channels too: pub/sub ignores database numbers.

    `sharded`: for a Redis Cluster.
    """

    namespace: str
    sharded: bool = False

    # ---- keys

    @property
    def nodes(self) -> str:
        """Sorted set: node id -> end of its lease, ms since 1970 in Redis' own time. The index to the rest."""
        return f"{self.namespace}ws:nodes"

    def node(self, node_id: str) -> str:
        """Hash with a TTL: the lease itself. While it exists, the node's rows count; afterwards none does."""
        return f"{self.namespace}ws:node:{{{node_id}}}"

    def clients(self, node_id: str) -> str:
        """Hash: client id -> JSON. One a node, so a node's death is one key's death."""
        return f"{self.node(node_id)}:clients"

    def topics(self, node_id: str) -> str:
        """Hash: topic -> subscribers on that node. A topic's total is a sum over living nodes."""
        return f"{self.node(node_id)}:topics"

    def people(self, node_id: str, topic: str) -> str:
        """Hash: client id -> JSON, for topics with presence. The reaper finds them by the names in `topics`."""
        return f"{self.node(node_id)}:topic:{topic}"

    def history(self, topic: str) -> str:
        """Stream: the last messages of a topic; entry ids are ``{offset}-0``, so an offset is found at once.

        Fields: t (ms of the publish), m (the text), x (the client that is not sent it), k (the mark) and p (the mark of
        the message before it).
        """
        return f"{self.namespace}ws:history:{{{topic}}}"

    def history_meta(self, topic: str) -> str:
        """Hash: epoch, top offset and its mark. It outlives the messages, so clients that were away longer are told.

        It is written by publishes only, and renewed by nodes that have the topic open.
        """
        return f"{self.history(topic)}:meta"

    def history_answer(self, topic: str, key: str) -> str:
        """Hash: what a publish with this idempotency key was answered, for five minutes."""
        return f"{self.history(topic)}:answer:{key}"

    def snapshot(self, topic: str) -> str:
        """Hash with a TTL: version and text of the last message, for topics that have a snapshot."""
        return f"{self.namespace}ws:snapshot:{{{topic}}}"

    def ingested(self, digest: str) -> str:
        """String, for seconds: some node passes this message of `ingest` on."""
        return f"{self.namespace}ws:ingested:{digest}"

    @property
    def slots(self) -> str:
        """Sorted set: node id -> end of its lease, for the nodes' slots. One tag for all: one step adds them up."""
        return f"{self.namespace}ws:{{slots}}"

    def node_slots(self, node_id: str) -> str:
        """Hash with a TTL as the lease's: user or address -> connections on that node. It dies with the node."""
        return f"{self.slots}:{node_id}"

    def cached(self, key: str) -> str:
        """String with a TTL: JSON, as the cache was given it. The key holds no braces (`cache.check_key`)."""
        return f"{self.namespace}cache:{{{key}}}"

    def cache_lock(self, key: str) -> str:
        """String with a TTL: the token of whoever loads the value."""
        return f"{self.cached(key)}:lock"

    def cached_under(self, prefix: str) -> str:
        """The pattern (of SCAN) of all values of the cache whose keys begin so, and of their locks."""
        return f"{self.namespace}cache:{{{_GLOB.sub(_ESCAPED, prefix)}*"

    def quota(self, user: str) -> str:
        """String with a TTL: when all that the user has published will have been earned. It is full if it is gone."""
        return f"{self.namespace}ws:quota:{user}"

    def allowance(self, who: str) -> str:
        """String with a TTL: the same for the bytes that messages of ``user:…`` or ``address:…`` may take."""
        return f"{self.namespace}ws:allowance:{who}"

    @property
    def revoked(self) -> str:
        """Sorted set: ``token:{id}`` or ``user:{user}`` -> until when it is revoked, seconds since 1970."""
        return f"{self.namespace}{{ws:revoked}}"

    @property
    def revoked_users(self) -> str:
        """Sorted set: ``user:{user}`` -> the moment up to which its tokens are revoked."""
        return f"{self.revoked}:users"

    @property
    def revoked_version(self) -> str:
        """String, another one after each change: nodes compare it at every beat."""
        return f"{self.revoked}:version"

    @property
    def rules(self) -> str:
        """String with a TTL: the nodes' topic rules (TOML), for programs that publish straight on Redis."""
        return f"{self.namespace}ws:rules"

    @property
    def services(self) -> str:
        """Sorted set: service -> end of its newest lease, ms since 1970 in Redis' own time. The index to the rest."""
        return f"{self.namespace}services"

    def service(self, name: str) -> str:
        """Hash: instance -> JSON record, with the end of its lease in it. One a service, so a read is one HGETALL."""
        return f"{self.namespace}service:{{{name}}}"

    def leader(self, name: str) -> str:
        """String with a TTL, the lease of a singleton: ``{token} {instance}``."""
        return f"{self.service(name)}:leader"

    def fence(self, name: str) -> str:
        """String with a TTL: the newest token of a singleton. It outlives the lease, so that tokens only grow."""
        return f"{self.service(name)}:fence"

    # ---- channels

    def audience(self, audience: str) -> str:
        """``topic:…``, ``user:…`` or ``role:…``: joined while the node has such a client."""
        if not self.sharded:
            return f"{self.namespace}ws:{audience}"
        kind, _, name = audience.partition(":")
        return f"{self.namespace}ws:{kind}:{{{name}}}"

    def audience_of(self, channel: str) -> str:
        """The audience whose channel this is."""
        audience = channel[len(self.namespace) + 3 :]
        if not self.sharded:
            return audience
        kind, _, name = audience.partition(":")
        return f"{kind}:{name[1:-1]}"

    def own(self, node_id: str) -> str:
        """One node's own channel: its self-check, and messages to one of its clients."""
        return f"{self.namespace}ws:node:{{{node_id}}}" if self.sharded else f"{self.namespace}ws:node:{node_id}"

    @property
    def control(self) -> str:
        """Orders to all nodes: disconnect, unsubscribe, revoke …"""
        return f"{self.namespace}ws:control"

    @property
    def ready(self) -> str:
        """A node has joined; the original plan's name."""
        return f"{self.namespace}websocket:ready"

    @property
    def service_updates(self) -> str:
        """A service's state has changed: ``{serviceName, instance, state}``; the original plan's name."""
        return f"{self.namespace}service:state:updated"

    @property
    def ingest(self) -> str:
        """Where publishers written for the original plan send ``{topic, data, timestamp, sourceId}``."""
        return f"{self.namespace}ws:broadcast"

    @property
    def cache_changes(self) -> str:
        """What of the cache has changed, for the nodes that remember it, and those that wait for a load."""
        return f"{self.namespace}cache:changed"


def node_of(client_id: str) -> str:
    """The node that a client id was given by: ``name.boot.counter`` -> ``name.boot``; "" if it is no such id."""
    return client_id.rpartition(".")[0]

"""Every Redis key and channel, with the reason for its form.

Braces are Redis Cluster hash tags: all keys of one Lua script share a tag and so a slot. Node ids, topics and service
names contain no braces, so a tag is never cut short.

On a cluster, a channel with braces belongs to one slot (`RedisClient.publish_command`): nodes use SSUBSCRIBE and
SPUBLISH on the server that has the slot. The channel of a topic has the slot of its stream. The few channels without
braces are for all nodes, and Redis sends their messages to every server. On a single Redis no channel has braces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

IDEMPOTENCY_MS: Final = 300_000  # how long the same idempotency key means the same message

_CLIENT_ID: Final = re.compile(r"[A-Za-z0-9_.\-]{1,200}")
_GLOB: Final = re.compile(r"([*?\[\]\\])")
_ESCAPED: Final = r"\\\1"


@dataclass(frozen=True, slots=True)
class Keys:
    """Names under one namespace. Channels have the prefix too, because pub/sub ignores database numbers.

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
        """Hash with a TTL: the lease. The node's rows are valid only while it exists."""
        return f"{self.namespace}ws:node:{{{node_id}}}"

    def clients(self, node_id: str) -> str:
        """Hash: client id -> JSON. One hash per node, so that one key goes when a node dies."""
        return f"{self.node(node_id)}:clients"

    def topics(self, node_id: str) -> str:
        """Hash: topic -> number of subscribers on that node. The total of a topic is the sum over living nodes."""
        return f"{self.node(node_id)}:topics"

    def presence(self, node_id: str, topic: str) -> str:
        """Hash: client id -> JSON, for topics with presence. The reaper finds them by the names in `topics`."""
        return f"{self.node(node_id)}:topic:{topic}"

    def history(self, topic: str) -> str:
        """Stream: the last messages of a topic. Entry ids are ``{offset}-0``, so a read can start at an offset.

        Fields: t (ms of the publish), m (the text), x (a client that does not receive it), k (the mark) and p (the mark
        of the previous message).
        """
        return f"{self.namespace}ws:history:{{{topic}}}"

    def history_meta(self, topic: str) -> str:
        """Hash: epoch, newest offset and its mark. It outlives the messages, so that a client that was away longer than
        the messages were kept learns that it missed some.

        Only publishes write it; nodes with subscribers of the topic renew its TTL.
        """
        return f"{self.history(topic)}:meta"

    def publish_answer(self, topic: str, key: str) -> str:
        """Hash with the TTL `IDEMPOTENCY_MS`: the answer to the publish with this idempotency key.

        It has the position of the message, or only the field `published` if the topic has no history.
        """
        return f"{self.history(topic)}:answer:{key}"

    def snapshot(self, topic: str) -> str:
        """Hash with a TTL: version and text of the last message, for topics that have a snapshot."""
        return f"{self.namespace}ws:snapshot:{{{topic}}}"

    def ingest_claim(self, digest: str) -> str:
        """String with a TTL of seconds: a node is already publishing this message of `ingest`."""
        return f"{self.namespace}ws:ingested:{digest}"

    @property
    def connection_nodes(self) -> str:
        """Sorted set: node id -> end of its lease, for `node_connections`. All share a tag, so one script adds them
        up.
        """
        return f"{self.namespace}ws:{{slots}}"

    def node_connections(self, node_id: str) -> str:
        """Hash with the TTL of the lease: user or address -> number of connections on that node."""
        return f"{self.connection_nodes}:{node_id}"

    def cache_value(self, key: str) -> str:
        """String with a TTL: a cached value as JSON. The key contains no braces (`cache.check_key`)."""
        return f"{self.namespace}cache:{{{key}}}"

    def cache_lock(self, key: str) -> str:
        """String with a TTL: the token of the process that loads the value."""
        return f"{self.cache_value(key)}:lock"

    def cache_pattern(self, prefix: str) -> str:
        """SCAN pattern of all cached values whose keys begin with `prefix`, and of their locks."""
        return f"{self.namespace}cache:{{{_GLOB.sub(_ESCAPED, prefix)}*"

    def quota(self, user: str) -> str:
        """String with a TTL: the time at which the token bucket of the user's publishes is full. Missing: full."""
        return f"{self.namespace}ws:quota:{user}"

    def allowance(self, who: str) -> str:
        """String with a TTL: the same for the bytes that ``user:…`` or ``address:…`` may store in Redis."""
        return f"{self.namespace}ws:allowance:{who}"

    @property
    def revoked(self) -> str:
        """Sorted set: ``token:{id}`` or ``user:{user}`` -> end of its revocation, in seconds since 1970."""
        return f"{self.namespace}{{ws:revoked}}"

    @property
    def revoked_users(self) -> str:
        """Sorted set: ``user:{user}`` -> tokens issued up to this time are revoked."""
        return f"{self.revoked}:users"

    @property
    def revoked_version(self) -> str:
        """String that differs after each change; nodes compare it at every heartbeat."""
        return f"{self.revoked}:version"

    @property
    def rules(self) -> str:
        """String with a TTL: the nodes' topic rules (TOML), for programs that publish directly on Redis."""
        return f"{self.namespace}ws:rules"

    @property
    def services(self) -> str:
        """Sorted set: service -> end of its newest lease, ms since 1970 in Redis' own time. The index to the rest."""
        return f"{self.namespace}services"

    def service(self, name: str) -> str:
        """Hash: instance -> JSON record, which contains the end of its lease."""
        return f"{self.namespace}service:{{{name}}}"

    def leader(self, name: str) -> str:
        """String with a TTL, the lease of a singleton: ``{token} {instance}``."""
        return f"{self.service(name)}:leader"

    def fence(self, name: str) -> str:
        """String with a TTL: the newest token of a singleton. It outlives the lease, so that tokens only grow."""
        return f"{self.service(name)}:fence"

    # ---- channels

    def audience(self, audience: str) -> str:
        """Channel of an audience, ``topic:…``, ``user:…`` or ``role:…``; a node subscribes while it has members."""
        if not self.sharded:
            return f"{self.namespace}ws:{audience}"
        kind, _, name = audience.partition(":")
        return f"{self.namespace}ws:{kind}:{{{name}}}"

    def audience_of(self, channel: str) -> str:
        """The audience of a channel, the inverse of `audience`."""
        audience = channel[len(self.namespace) + 3 :]
        if not self.sharded:
            return audience
        kind, _, name = audience.partition(":")
        return f"{kind}:{name[1:-1]}"

    def node_channel(self, node_id: str) -> str:
        """A node's own channel, for its self-check and for messages to one of its clients."""
        return f"{self.namespace}ws:node:{{{node_id}}}" if self.sharded else f"{self.namespace}ws:node:{node_id}"

    @property
    def control(self) -> str:
        """Control messages to all nodes: disconnect, unsubscribe, revoke …"""
        return f"{self.namespace}ws:control"

    @property
    def node_ready(self) -> str:
        """Announces that a node has joined. The name is that of the first specification."""
        return f"{self.namespace}websocket:ready"

    @property
    def service_updates(self) -> str:
        """Announces changed service states, ``{serviceName, instance, state}``. Name of the first specification."""
        return f"{self.namespace}service:state:updated"

    @property
    def ingest(self) -> str:
        """Channel on which publishers of the first specification send ``{topic, data, timestamp, sourceId}``."""
        return f"{self.namespace}ws:broadcast"

    @property
    def cache_changes(self) -> str:
        """Notices of changed cache keys, for near caches and for processes that wait for a load."""
        return f"{self.namespace}cache:changed"


def node_of(client_id: str) -> str:
    """The node that assigned a client id: ``name.boot.counter`` -> ``name.boot``; "" if it is not a client id."""
    return client_id.rpartition(".")[0]


def is_client_id(text: str) -> bool:
    """Whether `text` may be a client id, so that it can be a part of a Redis key."""
    return _CLIENT_ID.fullmatch(text) is not None

"""A cluster of WebSocket gateways. The layers, from top to bottom; imports go only downward:

__main__
cli/         commands for people
server       uvicorn that drains before it stops
app          settings -> Starlette application: the composition root
web/         what is served besides sockets: API, health, pages
node         one gateway process: its parts and its lifecycle
departures   drain and rebalance: closing all clients, or some
reporter     publishes the node's figures for administrators
clients      the connections of the node: handles their messages
memberships  subscribes clients to audiences and unsubscribes them
errands      asynchronous commands of clients
calls        calls of clients to the back end
limits       limits of messages and buffers of clients
admission    limits of connections
outbox       sends messages to one client
relay        between hub and bus: publishes and delivers
transport/   connections: bytes in, prepared frames out, back-pressure
streams      topics with history: order and recovery
conflation   delivers only the last message of a time window
presence     members of topics, joins and leaves
announcer    publishes service states for administrators
heartbeat    renews the lease of the node
publisher    publishes from a Python program, without a node
auth/        keys, tokens, revocations, permissions of the back end
client/      the Python client
cluster/     state that nodes share in Redis
backend      client of the HTTP back end, with a circuit breaker
metrics, settings, logs
core/        pure code: protocol, rules, fan-out. No event loop, no Redis, no clock

pyproject.toml lists the layers of each package, and `make lint` checks them.
"""

__version__ = "0.1.0"

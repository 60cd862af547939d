"""A cluster of WebSocket gateways. The packages from top to bottom; imports go only downward:

__main__
cli/          commands for people
dev           a cluster for development, with an embedded Redis
server        uvicorn around one node
app           composition root: settings in, a Starlette application out
http/         everything served beside the sockets: API, pages, health, middleware
node/         one process: node, heartbeat, readiness, reaper, drain, control channel, statistics
connections/  this node's clients: manager, admission, limits, async commands
services/     service manager and singletons
cache/        the shared cache
publisher     publishing for programs without a node
tokens        tokens for back ends that log in their users
delivery/     publish and deliver on this node: publisher, dispatcher, subscriptions, recovery, presence, sender
auth/         tokens, key sets, API keys, permission checks, revocations
cluster/      shared state under node leases: registry, presence store, connection limits, quotas
broker/       Redis: topology, client, pipeline, pub/sub, envelope, history, snapshots, keys, Lua scripts
transports/   what carries frames: WebSocket, HTTP streams, HTTP/1
client/       the Python client
backend       HTTP client of the back end
protocols/    what is specific to one client protocol
metrics, settings, logging
core/         pure rules, without I/O and without a clock

pyproject.toml has the contracts; `make lint` checks them.
"""

__version__ = "0.1.0"
